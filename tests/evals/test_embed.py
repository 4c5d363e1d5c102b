"""embed: Parquet and NumPy files hold the features of extract, in order, with names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from imprint.core.errors import ConfigError
from imprint.evals.embed import embed
from imprint.evals.features import extract
from imprint.evals.protocol import ProtocolConfig

CONFIG = ProtocolConfig(device="cpu", batch_size=32)


def test_parquet(tiny, train, tmp_path: Path) -> None:
    path = embed(tiny, train, tmp_path / "a" / "e.parquet", config=CONFIG)
    found = pq.read_table(path)
    assert found.column_names == ["index", "name", "label", "embedding"]
    assert str(found.schema.field("embedding").type) == "fixed_size_list<item: float>[6]" or "6" in str(
        found.schema.field("embedding").type
    )
    values = np.stack(found["embedding"].to_numpy())
    np.testing.assert_array_equal(values, extract(tiny, train, device="cpu", batch_size=32, cache=False).features_ND)
    assert found["label"].to_pylist() == [train.classes[i] for i in train.labels]
    assert found["name"][5].as_py() == train.name(5) and found["index"].to_pylist() == list(range(240))
    assert json.loads(found.schema.metadata[b"imprint"])["encoder"] == "tiny"
    assert [p.name for p in path.parent.iterdir()] == ["e.parquet"]


def test_parquet_without_labels_has_nulls(tiny, unlabelled, tmp_path: Path) -> None:
    found = pq.read_table(embed(tiny, unlabelled, tmp_path / "e.parquet", config=CONFIG))
    assert found["label"].null_count == 40


def test_npy_with_names(tiny, train, tmp_path: Path) -> None:
    path = embed(tiny, train, tmp_path / "e.npy", config=CONFIG)
    values = np.load(path, mmap_mode="r")
    want = extract(tiny, train, device="cpu", batch_size=32, cache=False).features_ND
    assert values.dtype == np.float32 and np.array_equal(values, want)
    names = (tmp_path / "e.names.txt").read_text().splitlines()
    assert names == [train.name(i) for i in range(240)]
    about = json.loads((tmp_path / "e.json").read_text())
    assert about["labels"] == train.labels.tolist() and about["classes"] == list(train.classes)


def test_damaged_images_shorten_the_array(tiny, tmp_path: Path) -> None:
    import cv2

    from imprint.data.sources import open_source

    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(40):
        cv2.imwrite(str(folder / f"line\nbreak{i:02d}.png"), np.full((8, 8, 3), i, np.uint8))
    (folder / "line\nbreak07.png").write_bytes(b"broken")
    path = embed(tiny, open_source(folder), tmp_path / "e.npy", config=CONFIG)
    assert np.load(path).shape == (39, 6)
    names = (tmp_path / "e.names.txt").read_text().splitlines()
    assert len(names) == 39 and "line\\nbreak00.png" in names[0] and not any("07" in n for n in names)
    assert json.loads((tmp_path / "e.json").read_text())["index"][6:8] == [6, 8]


def test_other_endings_are_refused_before_any_work(tiny, train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.parquet or \.npy"):
        embed(tiny, train, tmp_path / "e.csv")
    assert tiny.calls == 0 and list(tmp_path.iterdir()) == []


def test_failure_leaves_the_old_file(tiny, train, tmp_path: Path) -> None:
    path = embed(tiny, train, tmp_path / "e.npy", config=CONFIG)
    before = path.read_bytes()
    tiny.has_cls = False
    with pytest.raises(ConfigError, match="class token"):
        embed(tiny, train, path, config=ProtocolConfig(device="cpu", tokens="cls"))
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.json", "e.names.txt", "e.npy"]
