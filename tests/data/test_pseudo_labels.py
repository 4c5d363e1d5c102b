"""Which pseudo-labelled images are used, by hand, and how batches are mixed."""

import numpy as np
import pytest

from imprint.core.errors import ConfigError
from imprint.data.arrays import ArraySource
from imprint.data.loader import Loader
from imprint.data.pseudo_labels import MixedOrder, PseudoLabelled, PseudoLabels, balanced, enough
from imprint.data.view_recipes import probe_views

CONFIDENCE = np.array([0.9, 0.2, 0.8, 0.7, 0.95, 0.3, 0.6, 0.29, 0.5], dtype=np.float32)
DECISION = np.array([0, 0, 0, 0, 1, 1, 0, 2, 0])


def test_the_most_confident_of_every_class_are_kept_and_rare_classes_repeated():
    """Class 0: 0.9, 0.8, 0.7 of five; class 1: both, and one of them again; class 2: nothing above the threshold."""
    chosen = balanced(CONFIDENCE, DECISION, 3, PseudoLabels(confidence=0.3, per_class=3), seed=0)
    assert chosen[:3].tolist() == [0, 2, 3]
    rare = chosen[3:].tolist()
    assert rare[:2] == [4, 5] and rare[2] in (4, 5) and len(rare) == 3


def test_whole_repeats_and_a_drawn_remainder():
    chosen = balanced(CONFIDENCE, DECISION, 3, PseudoLabels(confidence=0.3, per_class=9), seed=0)
    counts = np.bincount(chosen, minlength=9)
    assert counts[[1, 7]].tolist() == [0, 0]
    common, rare = counts[[0, 2, 3, 6, 8]], counts[[4, 5]]
    assert common.sum() == rare.sum() == 9
    assert sorted(common.tolist()) == [1, 2, 2, 2, 2] and sorted(rare.tolist()) == [4, 5]


def test_the_largest_class_sets_the_number_where_none_is_given():
    chosen = balanced(CONFIDENCE, DECISION, 3, PseudoLabels(confidence=0.0, per_class=0), seed=0)
    assert np.bincount(DECISION[chosen]).tolist() == [6, 6, 6]
    assert sorted(chosen[:6].tolist()) == [0, 1, 2, 3, 6, 8]
    assert chosen[12:].tolist() == [7] * 6


def test_nothing_confident_gives_nothing_and_ties_go_by_place():
    assert balanced(CONFIDENCE, DECISION, 3, PseudoLabels(confidence=0.99), seed=0).size == 0
    same = balanced(np.full(5, 0.5), np.zeros(5, int), 1, PseudoLabels(per_class=3), seed=0)
    assert same.tolist() == [0, 1, 2]


def test_the_draw_of_repeated_images_is_the_seeds_and_differs_between_seeds():
    confidence, decision = np.linspace(0.9, 0.4, 40), np.repeat([0, 1], [10, 30])
    wanted = PseudoLabels(per_class=15)
    draws = [tuple(balanced(confidence, decision, 2, wanted, seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def mixed(rank=0, world=1, sizes=(10, 21), rows=(2, 6), seed=3):
    return MixedOrder(sizes=sizes, rows=rows, seed=seed, rank=rank, world=world)


def test_every_batch_holds_both_kinds_in_their_ratio_and_every_part_of_it_too():
    for step in range(30):
        rows = mixed().indices(step)
        assert rows.size == 8 and (rows < 10).sum() == 2
        assert (rows[:4] < 10).sum() == (rows[4:] < 10).sum() == 1


def test_a_pass_shows_every_image_at_most_once_and_all_that_fill_batches():
    order = mixed()
    assert order.steps_per_epoch == 5
    first = np.concatenate([order.indices(step) for step in range(5)])
    assert sorted(first[first < 10].tolist()) == list(range(10))
    for start in (0, 3, 6):  # passes over the pseudo-labelled images: three steps of six of 21
        pseudo = np.concatenate([order.indices(step) for step in range(start, start + 3)])
        pseudo = pseudo[pseudo >= 10]
        assert np.unique(pseudo).size == 18 and pseudo.max() < 31
    again = np.concatenate([order.indices(step) for step in range(5, 10)])
    assert again[again < 10].tolist() != first[first < 10].tolist()


def test_no_sample_meets_the_same_views_twice():
    """Views are drawn by (epoch, sample), so that number must grow between two visits of any sample."""
    order, seen = mixed(), set()
    for step in range(60):
        for sample in order.indices(step).tolist():
            assert (order.epoch(step), sample) not in seen
            seen.add((order.epoch(step), sample))


@pytest.mark.parametrize("world", [2, 4])
def test_the_rows_of_all_processes_are_those_of_one(world):
    for step in range(12):
        parts = [mixed(rank, world).indices(step) for rank in range(world)]
        assert np.concatenate(parts).tolist() == mixed().indices(step).tolist()


def test_walking_from_a_later_step_gives_the_same_rows():
    whole = dict(mixed().walk(0, 12))
    for step, rows in mixed().walk(7, 12):
        assert rows.tolist() == whole[step].tolist()


def sources(wanted, soft=True):
    rng = np.random.default_rng(0)
    labelled = ArraySource(rng.integers(0, 255, (4, 16, 16, 3), dtype=np.uint8), np.array([0, 1, 2, 1]))
    unlabelled = ArraySource(rng.integers(0, 255, (5, 16, 16, 3), dtype=np.uint8))
    entries = np.array([3, 0, 0])
    decisions, rows = np.array([2, 1, 1]), np.array([1, 0, 0])
    table = np.array([[0.1, 0.8, 0.1], [0.0, 0.25, 0.75]], dtype=np.float16)
    return labelled, unlabelled, PseudoLabelled(
        labelled, unlabelled, entries, decisions, rows if soft else None, table if soft else None, wanted
    )  # fmt: skip


def test_the_source_hands_over_images_labels_and_what_the_teacher_said():
    labelled, unlabelled, both = sources(PseudoLabels())
    assert len(both) == 7 and both.labels.tolist() == [0, 1, 2, 1, 2, 1, 1]
    assert np.array_equal(both.read(2), labelled.read(2))
    assert np.array_equal(both.read(4), unlabelled.read(3))
    assert np.array_equal(both.read(5), unlabelled.read(0)) and both.name(5) == unlabelled.name(0)
    said = both.targets(np.array([5, 1, 4]))
    assert said["pseudo"].tolist() == [True, False, True]
    np.testing.assert_allclose(said["classes"], [[0.1, 0.8, 0.1], [0, 0, 0], [0, 0.25, 0.75]], atol=1e-3)
    assert said["classes"].dtype == np.float32
    assert both.stand_ins(1) == (0, 4) and both.stand_ins(6) == (4, 3)
    assert set(sources(PseudoLabels(soft=False), soft=False)[2].targets(np.array([1, 6]))) == {"pseudo"}


def test_batches_of_the_loader_carry_the_targets():
    both = sources(PseudoLabels(ratio=1.0))[2]
    with Loader(both, probe_views(16), batch_size=4, seed=0, workers=1) as loader:
        for batch in loader.batches(0, 6):
            pseudo = batch.targets["pseudo"]
            assert pseudo.sum() == 2 and (pseudo == (batch.index_B >= 4)).all()
            assert (batch.labels_B.numpy() == both.labels[batch.index_B.numpy()]).all()
            assert ((batch.targets["classes"].sum(1) > 0.9) == pseudo).all()


def test_too_few_images_are_repeated_until_they_fill_a_batch():
    assert enough(np.array([5, 7]), 5).tolist() == [5, 7, 5, 7, 5, 7]
    assert enough(np.arange(9), 5).tolist() == list(range(9))


def test_a_batch_must_have_room_for_both():
    assert PseudoLabels(ratio=3.0).rows(256) == (64, 192)
    with pytest.raises(ConfigError, match="--batch-size 15"):
        PseudoLabels(ratio=14.0).rows(7)
