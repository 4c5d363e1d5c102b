"""Sources made of other sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import DataError
from imprint.data.arrays import ArraySource
from imprint.data.combine import Concat
from imprint.data.sources import open_source


def tree(root: Path, names: list[str], size: int = 8) -> Path:
    for k, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (k % 256, 7, 200)).save(path)
    return root


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


def test_a_chain_is_as_wide_and_deep_as_its_widest_and_deepest_part() -> None:
    colour = ArraySource(np.zeros((2, 4, 4, 3), np.uint8))
    deep = ArraySource(np.zeros((2, 4, 4, 1), np.uint16))
    both = Concat([colour, deep])
    assert both.channels == 3 and both.dtype == np.uint16
    assert both.fingerprint != Concat([deep, colour]).fingerprint
    assert both.subset([3]).name(0) == "arrays[1]"
