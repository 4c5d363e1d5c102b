"""Zip and tar shards, read at random."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import BadImage, DataError
from imprint.data.shards import ShardSource
from imprint.data.sources import open_source


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, value // 256, 9)).save(stream, "png")
    return stream.getvalue()


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


LONG = "data/" + "x" * 150 + "/é.png"  # longer than a plain tar header holds
PLAIN = {"data/b/2.png": png(2), "data/a/1.png": png(1), "data/notes.txt": b"no image", LONG: png(3)}


@pytest.mark.parametrize("name", ["s.tar", "s.zip", "deflated.zip"])
def test_members_are_read_at_random_as_they_are(tmp_path: Path, name: str) -> None:
    members = PLAIN | {".hidden.png": b"x", "__MACOSX/data/a/1.png": b"x"}
    path = write(tmp_path / name, members, zipfile.ZIP_DEFLATED if "deflated" in name else zipfile.ZIP_STORED)
    source = open_source(path)
    assert isinstance(source, ShardSource) and len(source) == 3
    assert [source.name(i) for i in range(3)] == [f"{name}/{m}" for m in ("data/b/2.png", "data/a/1.png", LONG)]
    for i in (2, 0, 1, 2):
        assert source.read(i) == members[source.name(i).removeprefix(f"{name}/")]
    assert source.labels is None  # three folders with one image each are no classes


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_pattern_is_one_source_in_order(tmp_path: Path, kind: str) -> None:
    for s in range(12):
        write(tmp_path / f"train-{s:03d}.{kind}", {f"{i}.png": png(10 * s + i) for i in range(3)})
    braces = open_source(f"{tmp_path}/train-{{000..011}}.{kind}")
    stars = open_source(f"{tmp_path}/train-*.{kind}")
    assert len(braces) == 36 and braces.fingerprint == stars.fingerprint
    assert braces.read(35) == png(112) and braces.name(35) == f"train-011.{kind}/2.png"
    assert len(open_source(f"{tmp_path}/train-{{000,003}}.{kind}")) == 6
    with pytest.raises(DataError, match=f"train-012.{kind}"):
        open_source(f"{tmp_path}/train-{{000..012}}.{kind}")
    with pytest.raises(DataError, match="nothing matches"):
        open_source(f"{tmp_path}/val-*.{kind}")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_folders_inside_are_classes(tmp_path: Path, kind: str) -> None:
    members = {f"set/{c}/{i}.png": png(i) for c in ("dog", "cat") for i in range(2)}
    source = open_source(write(tmp_path / f"s.{kind}", members))
    assert source.classes == ("cat", "dog")
    assert source.labels is not None and source.labels.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_webdataset_labels(tmp_path: Path, kind: str) -> None:
    for s in range(2):
        members: dict[str, bytes] = {}
        for i in range(3):
            members |= {f"{s}{i}.png": png(i), f"{s}{i}.seg.png": png(99), f"{s}{i}.cls": b"%d\n" % (7 + i)}
        write(tmp_path / f"w{s}.{kind}", members)
    source = open_source(f"{tmp_path}/w*.{kind}")
    assert len(source) == 6  # one image a key: the second one is its mask
    assert source.labels is not None and source.labels.tolist() == [7, 8, 9, 7, 8, 9]
    assert len(source.classes) == 10
    members = {}
    for i, name in enumerate(["owl", "ant", "owl"]):
        members |= {f"{i}.json": json.dumps({"label": name, "width": 8}).encode(), f"{i}.jpg": png(i)}
    named = open_source(write(tmp_path / f"j.{kind}", members))
    assert named.classes == ("ant", "owl")
    assert named.labels is not None and named.labels.tolist() == [1, 0, 1]
    del members["1.json"]
    assert open_source(write(tmp_path / f"k.{kind}", members)).labels is None


def test_the_index_is_kept_and_follows_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "s.tar", {"1.png": png(1)})
    before = open_source(path)
    monkeypatch.setattr("tarfile.open", lambda *a, **k: pytest.fail("the shard was scanned again"))
    again = open_source(path)
    assert again.read(0) == png(1) and again.fingerprint == before.fingerprint
    monkeypatch.undo()
    write(path, {"1.png": png(1), "2.png": png(2)})
    after = open_source(path)
    assert len(after) == 2 and after.fingerprint != before.fingerprint


def test_a_shard_that_was_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {f"{i}.png": os.urandom(5000) for i in range(5)})
    data = path.read_bytes()
    path.write_bytes(data[: 3 * (512 + 5120) + 512 + 100])  # within the data of the fourth
    source = open_source(path)
    assert len(source) >= 3
    assert len(source.read(2)) == 5000
    if len(source) == 4:
        with pytest.raises(BadImage, match="truncated"):
            source.read(3)


def test_damage_inside_a_zip(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zip", {f"{i}.png": png(i) * 20 for i in range(3)}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        offsets = [info.header_offset for info in archive.infolist()]
    data = bytearray(path.read_bytes())
    data[offsets[0] : offsets[0] + 4] = b"????"
    data[offsets[1] + 36 : offsets[1] + 60] = b"\xff" * 24
    path.write_bytes(data)
    source = open_source(path)
    for i in (0, 1):
        with pytest.raises(BadImage, match="corrupt"):
            source.read(i)
    assert source.read(2) == png(2) * 20


def test_a_zip_bomb_gives_no_more_than_it_announced(tmp_path: Path) -> None:
    path = write(tmp_path / "s.zip", {"a.png": b"\0" * 1_000_000}, zipfile.ZIP_DEFLATED)
    source = open_source(path)
    assert isinstance(source, ShardSource)
    source.shards[0].full = np.array([1000], dtype=np.uint64)
    assert len(source.read(0)) == 1000
    source.shards[0].full = np.array([1 << 40], dtype=np.uint64)
    with pytest.raises(BadImage, match="too-large"):
        source.read(0)


def test_other_packings_are_named(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "s.zip", {"a.png": png(1)}, zipfile.ZIP_LZMA))
    with pytest.raises(BadImage, match="unsupported"):
        source.read(0)


@pytest.mark.parametrize("name", ["s.tar", "s.zip"])
def test_what_is_no_archive(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello" * 300)
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / name)
    with pytest.raises(DataError, match="no images"):
        open_source(write(tmp_path / f"empty-{name}", {"readme.txt": b"x"}))


def test_threads_read_at_once_from_more_shards_than_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprint.data.shards._OPEN", 2)
    for s in range(5):
        write(tmp_path / f"{s}.tar", {f"{i}.png": png(10 * s + i) for i in range(10)})
    source = open_source(f"{tmp_path}/*.tar")
    assert isinstance(source, ShardSource)
    wrong: list[int] = []

    def read() -> None:
        wrong.extend(i for i in range(50) if source.read(i) != png(i))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(source._files) == 2
