"""Labels from ints, names and folders."""

from __future__ import annotations

import numpy as np
import pytest

from imprint.core.errors import DataError
from imprint.data.labels import labels_of_dirs, labels_of_members, read_labels


def test_members_below_a_shared_folder() -> None:
    classes, labels = labels_of_members([b"set/x/1", b"set/y/2", b"set/x/deep/3", b"set/y/4"])
    assert classes == ("x", "y") and labels is not None and labels.tolist() == [0, 1, 0, 1]
    assert labels_of_members([b"1", b"2"]) == ((), None)
    assert labels_of_members([b"x/1", b"x/2", b"y/1", b"stray"]) == ((), None)
    assert labels_of_members([]) == ((), None)


def test_directories_without_files_give_no_class() -> None:
    classes, labels = labels_of_dirs([b"", b"a", b"b", b"b/deep", b"c"], np.array([0, 2, 0, 3, 0]))
    assert classes == ("a", "b") and labels is not None and labels.tolist() == [0, 0, 1, 1, 1]


def test_given_class_names_must_cover_the_labels() -> None:
    classes, labels = read_labels([0, 2], 2, "set", ("a", "b", "c", "d"))
    assert classes == ("a", "b", "c", "d") and labels is not None and labels.dtype == np.int64
    with pytest.raises(DataError, match="label 2 has no name"):
        read_labels([0, 2], 2, "set", ("a", "b"))
    assert read_labels(None, 2, "set") == ((), None)
