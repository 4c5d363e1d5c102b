import numpy as np
import pytest

from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.data.labelled import Labelled, labelled_part, write_names


@pytest.fixture
def source():
    labels = np.repeat([0, 1, 2], [100, 50, 8])
    return ArraySource(np.zeros((158, 4, 4, 3), np.uint8), np.random.default_rng(0).permutation(labels))


def test_a_share_is_stratified_repeatable_and_keeps_every_class(source, tmp_path):
    part, picked = labelled_part(source, Labelled(share=0.1), tmp_path)
    again, same = labelled_part(source, Labelled(share=0.1), tmp_path)
    other, different = labelled_part(source, Labelled(share=0.1, seed=1), tmp_path)
    assert np.bincount(part.labels).tolist() == [10, 5, 1] and part.classes == source.classes
    assert np.array_equal(picked, same) and not np.array_equal(picked, different)
    assert np.array_equal(source.labels[picked], part.labels) and len(set(picked.tolist())) == 16
    assert part.fingerprint == again.fingerprint != other.fingerprint


def test_smaller_parts_lie_inside_larger_ones(source, tmp_path):
    small, large, count = (
        set(labelled_part(source, wanted, tmp_path)[1].tolist())
        for wanted in (Labelled(share=0.1), Labelled(share=0.5), Labelled(per_class=1))
    )
    assert count < small < large
    assert len(labelled_part(source, Labelled(), tmp_path)[0]) == 158


def test_a_count_per_class_and_what_is_too_small(source, tmp_path):
    part, _ = labelled_part(source, Labelled(per_class=8), tmp_path)
    assert np.bincount(part.labels).tolist() == [8, 8, 8]
    with pytest.raises(DataError, match="has 8 images, fewer than the 9 .*at most 8 per class"):
        labelled_part(source, Labelled(per_class=9), tmp_path)


def test_the_rest_may_stay_without_labels(source, tmp_path):
    part, picked = labelled_part(source, Labelled(share=0.5, rest="unlabelled"), tmp_path)
    assert len(part) == 158 and np.array_equal(np.flatnonzero(part.labels >= 0), picked)
    assert np.array_equal(part.labels[picked], source.labels[picked])
    assert np.array_equal(part.read(3), source.read(3)) and part.channels == 3 and part.name(3) == source.name(3)
    _, inside = labelled_part(part, Labelled(per_class=2), tmp_path)  # hidden labels are never drawn
    assert set(inside.tolist()) <= set(picked.tolist())


def test_written_names_give_the_same_part(source, tmp_path):
    part, picked = labelled_part(source, Labelled(share=0.1), tmp_path)
    write_names(tmp_path / "labelled.txt", source, picked)
    again, same = labelled_part(source, Labelled(names="labelled.txt"), tmp_path)
    assert np.array_equal(same, picked) and again.fingerprint == part.fingerprint
    (tmp_path / "other.txt").write_text("nobody.png\n")
    with pytest.raises(DataError, match="such as 'nobody.png'"):
        labelled_part(source, Labelled(names="other.txt"), tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        labelled_part(source, Labelled(names="missing.txt"), tmp_path)


def test_a_source_without_labels(tmp_path):
    bare = ArraySource(np.zeros((4, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="no labels"):
        labelled_part(bare, Labelled(share=0.1), tmp_path)
    assert labelled_part(bare, Labelled(rest="unlabelled"), tmp_path) == (bare, None)
    assert labelled_part(bare, None, tmp_path) == (bare, None)


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"share": 1.2}, {"per_class": 0}])
def test_ranges(bad):
    with pytest.raises(ConfigError):
        Labelled(**bad)
