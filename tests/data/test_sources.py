"""Opening words, subsets, chains and label alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.data.combine import Concat
from imprint.data.sources import digest, open_source, spread


def tree(root: Path, names: list[str], size: int = 8) -> Path:
    for k, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (k % 256, 7, 200)).save(path)
    return root


def test_an_open_source_passes_through() -> None:
    source = ArraySource(np.zeros((2, 4, 4, 3), np.uint8))
    assert open_source(source) is source
    assert open_source([source]) is source


def test_several_folders_are_one_source_with_labels_merged_by_name(tmp_path: Path) -> None:
    a = tree(tmp_path / "a", ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"])
    b = tree(tmp_path / "b", ["bee/1.png", "bee/2.png", "dog/3.png", "dog/4.png"])
    both = open_source((str(a), str(b)))
    assert isinstance(both, Concat) and len(both) == 8
    assert both.classes == ("bee", "cat", "dog")
    assert both.labels is not None and both.labels.tolist() == [1, 1, 2, 2, 0, 0, 2, 2]
    assert both.name(6) == "dog/3.png"
    assert both.read(6) == (b / "dog/3.png").read_bytes()
    flat = tree(tmp_path / "c", ["1.png"])
    assert open_source((str(a), str(flat))).labels is None


def test_a_subset_keeps_order_names_and_labels() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    source = ArraySource(images, labels=["a", "b", "a", "c", "b"])
    part = source.subset([4, 0])
    assert part.labels is not None
    assert [part.classes[k] for k in part.labels] == ["b", "a"]
    assert int(np.asarray(part.read(0)).max()) == 4
    assert part.name(1) == source.name(0)
    assert part.fingerprint != source.subset([0, 4]).fingerprint
    assert len(source.subset(np.array([True, False, False, True, True]))) == 3
    with pytest.raises(DataError, match="asks for sample 5"):
        source.subset([5])


def test_alignment_renumbers_by_name() -> None:
    images = np.zeros((4, 4, 4, 3), np.uint8)
    train = ArraySource(images, labels=["ant", "bee", "cat", "cat"])
    test = ArraySource(images[:2], labels=["cat", "bee"])
    aligned = test.aligned(train.classes)
    assert aligned.labels is not None and aligned.labels.tolist() == [2, 1]
    assert aligned.classes == train.classes
    with pytest.raises(DataError, match="'eel'"):
        ArraySource(images[:1], labels=["eel"]).aligned(train.classes)
    with pytest.raises(DataError, match="no labels"):
        ArraySource(images).aligned(train.classes)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ("fotos", ConfigError, "photos"),
        ("photos:validation", ConfigError, "train"),
        ("/nowhere/at/all", DataError, "does not exist"),
        ("/nowhere/x-{0..2}.tar", DataError, "x-0.tar"),
    ],
)
def test_words_that_open_nothing_say_so(words: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        open_source(words)


def test_files_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no kind of source"):
        open_source(tmp_path / "a.docx")
    with pytest.raises(DataError, match="compressed tar"):
        open_source(tmp_path / "b.tar.gz")
    with pytest.raises(ConfigError, match="at least one source"):
        open_source(())


def test_the_layout_is_the_widest_found(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert open_source(tmp_path).channels == 1
    Image.new("RGBA", (8, 8)).save(tmp_path / "b.png")
    source = open_source(tmp_path)
    assert (source.channels, source.dtype) == (3, np.uint8)
    assert source.subset([0]).channels == 3
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "c.png")
    assert open_source(tmp_path).dtype == np.uint16


def test_spread_and_digest() -> None:
    assert spread(10, 3).tolist() == [0, 3, 6]
    assert spread(2, 16).tolist() == [0, 1]
    assert spread(0, 4).size == 0
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(np.zeros(4, np.uint8)) != digest(np.zeros((2, 2), np.uint8))
