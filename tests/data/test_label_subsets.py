"""Lists of labelled images: written, read again, and read as others write them."""

import numpy as np
import pytest

from imprint.core.errors import DataError
from imprint.data.arrays import ArraySource
from imprint.data.combine import Concat
from imprint.data.label_subsets import draw_subset, read_subset, write_subset
from imprint.data.sources import Source


class Named(Source):
    """Two classes with ImageNet's kind of names."""

    spec = "named"

    def __init__(self, names):
        self.names = names
        self.classes = ("n01", "n02")
        self.labels = np.array([int(name.startswith("n02")) for name in names])

    def __len__(self):
        return len(self.names)

    def read(self, i):
        return np.zeros((4, 4, 3), np.uint8)

    def name(self, i):
        return self.names[i]

    @property
    def fingerprint(self):
        return "named"


NAMES = [f"{c}/{c}_{i}.JPEG" for c in ("n01", "n02") for i in range(50)]


def test_what_was_written_is_read(tmp_path):
    source = Named(NAMES)
    picked = draw_subset(source, share=0.1, seed=3)
    assert np.bincount(source.labels[picked]).tolist() == [5, 5]
    assert write_subset(tmp_path / "a.txt", source, picked) == "names"
    assert np.array_equal(read_subset(tmp_path / "a.txt", source), picked)
    assert (tmp_path / "a.txt").read_text().splitlines()[0] == NAMES[picked[0]]
    assert not np.array_equal(draw_subset(source, share=0.1, seed=4), picked)


def test_official_lists_name_files_without_their_folders(tmp_path):
    (tmp_path / "1percent.txt").write_text("# a comment\nn02_7.JPEG\n\nn01_3.JPEG\nn01_3.JPEG\n")
    assert read_subset(tmp_path / "1percent.txt", Named(NAMES)).tolist() == [3, 57]


def test_names_that_do_not_tell_apart_become_positions(tmp_path):
    images = np.zeros((12, 4, 4, 3), np.uint8)
    twice = Concat([ArraySource(images, np.arange(12) % 2)] * 2)
    picked = draw_subset(twice, per_class=3)
    assert write_subset(tmp_path / "b.txt", twice, picked) == "indices"
    named = Concat([Named(NAMES), Named(NAMES)])
    (tmp_path / "c.txt").write_text(f"{NAMES[0]}\n")
    with pytest.raises(DataError, match="2 images of that name"):
        read_subset(tmp_path / "c.txt", named)
    (tmp_path / "d.txt").write_text("5\n101\n")
    assert read_subset(tmp_path / "d.txt", named).tolist() == [5, 101]


def test_lists_that_do_not_fit_are_refused(tmp_path):
    source = Named(NAMES)
    path = tmp_path / "x.txt"
    with pytest.raises(DataError, match="cannot be read"):
        read_subset(path, source)
    for text, said in (
        ("\n", "is empty"),
        ("n01_3.JPEG\nzebra.png\n", "such as 'zebra.png'"),
        ("900\n", "position 900"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_subset(path, source)
    with pytest.raises(DataError, match="no labels"):
        draw_subset(ArraySource(np.zeros((4, 4, 4, 3), np.uint8)), share=0.5)
