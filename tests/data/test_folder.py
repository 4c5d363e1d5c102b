"""Folders with and without classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import DataError
from imprint.data.folder import FolderSource


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)
    return root


def test_subfolders_are_classes_however_deep_the_images_lie(tmp_path: Path) -> None:
    put(tmp_path, "dog/a/1.png", "dog/b/2.png", "cat/3.jpg", "cat/4.webp", "cat/x/y/5.bmp")
    source = FolderSource(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.labels is not None and source.labels.dtype == np.int64
    got = {source.name(i): source.classes[source.labels[i]] for i in range(len(source))}
    assert got == {
        "cat/3.jpg": "cat",
        "cat/4.webp": "cat",
        "cat/x/y/5.bmp": "cat",
        "dog/a/1.png": "dog",
        "dog/b/2.png": "dog",
    }


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "3.png", "4.png"],
        ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "stray.png"],
        ["only/1.png", "only/2.png"],
        ["a/1.png", "b/1.png", "c/1.png"],
        ["train/1.png", "train/2.png", "Val/1.png", "Val/2.png"],
    ],
    ids=["flat", "stray", "one-class", "one-image-each", "splits"],
)
def test_anything_else_has_no_labels(tmp_path: Path, names: list[str]) -> None:
    source = FolderSource(put(tmp_path, *names))
    assert source.labels is None and source.classes == ()
    assert len(source) == len(names)


def test_empty_classes_do_not_count(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/2.png", "c/1.png", "c/2.png")
    (tmp_path / "b").mkdir()
    source = FolderSource(tmp_path)
    assert source.classes == ("a", "c")
    assert source.labels is not None and source.labels.tolist() == [0, 0, 1, 1]


def test_reading_gives_the_bytes(tmp_path: Path) -> None:
    put(tmp_path, "x.png")
    assert FolderSource(tmp_path).read(0) == (tmp_path / "x.png").read_bytes()


def test_the_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    put(tmp_path / "one", "a/1.png", "a/2.png")
    before = FolderSource(tmp_path / "one").fingerprint
    assert FolderSource(tmp_path / "one").fingerprint == before
    (tmp_path / "one").rename(tmp_path / "two")
    assert FolderSource(tmp_path / "two").fingerprint == before
    path = tmp_path / "two" / "a" / "1.png"
    os.utime(path, (1, 1))
    rewritten = FolderSource(tmp_path / "two").fingerprint
    assert rewritten != before
    path.rename(path.with_name("0.png"))
    assert FolderSource(tmp_path / "two").fingerprint not in (before, rewritten)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        FolderSource(tmp_path)
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"\*\.tar"):
        FolderSource(tmp_path)
