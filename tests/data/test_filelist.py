"""File lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from imprint.core.errors import DataError
from imprint.data.sources import open_source


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for k, name in enumerate(("a.png", "sub/b c.png", "é.png")):
        Image.new("RGB", (4, 4), (k, 0, 0)).save(tmp_path / name)
    return tmp_path


def test_one_path_a_line_relative_to_the_list(images: Path) -> None:
    (images / "list.txt").write_text(f"# a comment\nsub/b c.png\r\n\né.png\n{images}/a.png\n", encoding="utf-8")
    source = open_source(images / "list.txt")
    assert [source.name(i) for i in range(3)] == ["sub/b c.png", "é.png", f"{images}/a.png"]
    assert [source.read(i) for i in range(3)] == [(images / n).read_bytes() for n in ("sub/b c.png", "é.png", "a.png")]
    assert source.labels is None and source.channels == 3


def test_labels_after_a_tab(images: Path) -> None:
    (images / "list.txt").write_text("a.png\tdog\nsub/b c.png\tant bear\né.png\tdog\n", encoding="utf-8")
    source = open_source(images / "list.txt")
    assert source.classes == ("ant bear", "dog")
    assert source.labels is not None and source.labels.tolist() == [1, 0, 1]
    (images / "list.txt").write_text("a.png\t10\nsub/b c.png\t9\n", encoding="utf-8")
    numbered = open_source(images / "list.txt")
    assert numbered.labels is not None and numbered.labels.tolist() == [10, 9]


def test_columns_of_a_table(images: Path) -> None:
    (images / "list.csv").write_text('label,path,note\ncat,"sub/b c.png",x\ndog,a.png,"y, z"\n')
    source = open_source(images / "list.csv")
    assert source.name(0) == "sub/b c.png" and source.classes == ("cat", "dog")
    (images / "list.csv").write_text("path\na.png\n")
    assert open_source(images / "list.csv").labels is None


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.txt", "a.png\tdog\né.png\n", "not on 2"),
        ("l.txt", "\n# nothing\n", "names no files"),
        ("l.csv", "file,label\na.png,1\n", "name them 'path'"),
    ],
)
def test_lists_that_cannot_be_used(images: Path, name: str, text: str, says: str) -> None:
    (images / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        open_source(images / name)


def test_a_list_that_is_no_text(images: Path) -> None:
    (images / "l.txt").write_bytes(b"\xff\xfe\x00\x9c")
    with pytest.raises(DataError, match="UTF-8"):
        open_source(images / "l.txt")


def test_missing_files_are_found_out_when_read(images: Path) -> None:
    (images / "l.txt").write_text("a.png\ngone.png\n")
    source = open_source(images / "l.txt")
    assert len(source) == 2 and len(source.fingerprint) == 32
    with pytest.raises(FileNotFoundError):
        source.read(1)


def test_the_fingerprint_follows_the_files(images: Path) -> None:
    (images / "l.txt").write_text("a.png\n")
    before = open_source(images / "l.txt").fingerprint
    Image.new("RGB", (9, 9)).save(images / "a.png")
    assert open_source(images / "l.txt").fingerprint != before
