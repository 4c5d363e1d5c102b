"""Parquet files of encoded images."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imprint.core.errors import BadImage, DataError
from imprint.data.compact import cache_dir
from imprint.data.sources import open_source


def rows(count: int, start: int = 0) -> list[bytes]:
    return [bytes([k % 256]) * (10 + k) for k in range(start, start + count)]


def test_a_struct_column_as_hugging_face_writes_it(tmp_path: Path) -> None:
    images = [{"bytes": b, "path": f"{k}.png"} for k, b in enumerate(rows(20))]
    table = pa.table({"image": images, "label": [k % 3 for k in range(20)]})
    names = {"info": {"features": {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    source = open_source(tmp_path / "a.parquet")
    assert len(source) == 20 and source.classes == ("x", "y", "z")
    assert source.labels is not None and source.labels.tolist() == [k % 3 for k in range(20)]
    assert [source.read(i) for i in (19, 0, 7)] == [rows(20)[i] for i in (19, 0, 7)]


def test_several_files_and_plain_bytes(tmp_path: Path) -> None:
    for k in range(3):
        pq.write_table(pa.table({"jpg": rows(5, 5 * k), "class": ["ab"[k % 2]] * 5}), tmp_path / f"{k}.parquet")
    source = open_source(f"{tmp_path}/{{0..2}}.parquet")
    assert [source.read(i) for i in range(15)] == rows(15)
    assert source.classes == ("a", "b") and source.labels is not None and source.labels.tolist()[4:6] == [0, 1]


def test_the_copy_is_made_once_and_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": rows(3)}), path)
    before = open_source(path)
    count = len(list((cache_dir() / "parquet").iterdir()))
    assert open_source(path).fingerprint == before.fingerprint
    assert len(list((cache_dir() / "parquet").iterdir())) == count
    pq.write_table(pa.table({"image": rows(4)}), path)
    assert len(open_source(path)) == 4 and open_source(path).fingerprint != before.fingerprint


def test_hidden_or_missing_labels_are_none(tmp_path: Path) -> None:
    for labels in ([-1, -1], [1, None]):
        pq.write_table(pa.table({"image": rows(2), "label": labels}), tmp_path / "a.parquet")
        assert open_source(tmp_path / "a.parquet").labels is None


def test_an_empty_row_is_a_bad_sample(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([b"x", None], pa.binary())}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    with pytest.raises(BadImage, match="empty"):
        source.read(1)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match="as parquet"):
        open_source(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"], "n": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no column that is clearly the image"):
        open_source(tmp_path / "b.parquet")
    pq.write_table(pa.table({"left": rows(1), "right": rows(1)}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="no column that is clearly the image"):
        open_source(tmp_path / "c.parquet")


def test_a_cache_without_room_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": rows(1)}), tmp_path / "a.parquet")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="IMPRINT_CACHE"):
        open_source(tmp_path / "a.parquet")
