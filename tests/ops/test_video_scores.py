"""J and F against naive computations: sets of pixels, and distances between all pairs of boundary pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from imprint.ops.video_scores import VOID, boundary, contour_accuracy, course, near, region


def masks(seed: int, shape: tuple[int, int] = (41, 57)) -> Tensor:
    """Three smooth objects on a background."""
    noise = torch.randn(4, 1, *shape, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 9, stride=1, padding=4)
    return smooth[:, 0].argmax(0).to(torch.uint8)


def edge_of(mask: Tensor) -> list[tuple[int, int]]:
    """Pixels that differ from the right, lower or diagonal neighbour, borders as in the DAVIS toolkit."""
    h, w = mask.shape
    found = []
    for y in range(h):
        for x in range(w):
            steps = [(0, 1), (1, 0), (1, 1)]
            if y == h - 1:
                steps = [(0, 1)]
            if x == w - 1:
                steps = [(1, 0)]
            if y == h - 1 and x == w - 1:
                steps = []
            if any(mask[y + dy, x + dx] != mask[y, x] for dy, dx in steps):
                found.append((y, x))
    return found


def naive_f(predicted: Tensor, truth: Tensor, radius: float) -> float:
    ours, theirs = edge_of(predicted), edge_of(truth)
    if not ours or not theirs:
        return float(not ours and not theirs)
    away = np.linalg.norm(np.array(ours)[:, None] - np.array(theirs)[None], axis=-1)
    p, r = (away.min(1) <= radius).mean(), (away.min(0) <= radius).mean()
    return 2 * p * r / (p + r) if p + r else 0.0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("bound", [0.008, 0.05, 2])
def test_f_equals_distances_between_all_boundary_pixels(seed: int, bound: float) -> None:
    predicted, truth = masks(seed), masks(seed + 10)
    radius = bound if bound >= 1 else math.ceil(bound * math.hypot(41, 57))
    got = contour_accuracy(predicted, truth, [1, 2, 3], bound)
    assert got.tolist() == pytest.approx([naive_f(predicted == k, truth == k, radius) for k in (1, 2, 3)])


def test_j_equals_sets_and_void_counts_for_nothing() -> None:
    predicted, truth = masks(0), masks(3)
    truth[:, :9] = VOID
    want = []
    for k in (1, 2, 3):
        ours = {tuple(p) for p in ((predicted == k) & (truth != VOID)).nonzero().tolist()}
        theirs = {tuple(p) for p in (truth == k).nonzero().tolist()}
        want.append(len(ours & theirs) / len(ours | theirs))
    assert region(predicted, truth, [1, 2, 3]).tolist() == pytest.approx(want)
    changed = predicted.clone()
    changed[:, :8] = 2
    assert torch.equal(region(changed, truth, [1, 3]), region(predicted, truth, [1, 3]))


def test_empty_and_equal_masks() -> None:
    mask, empty = masks(1), torch.zeros(41, 57, dtype=torch.uint8)
    for measure in (region, contour_accuracy):
        assert measure(mask, mask, [1, 2, 3]).tolist() == [1.0, 1.0, 1.0]
        assert measure(empty, empty, [1]).tolist() == [1.0]
        assert measure(mask, empty, [1]).tolist() == measure(empty, mask, [1]).tolist() == [0.0]
    assert not boundary(torch.ones(5, 5)).any()


def test_near_is_dilation_by_a_disk() -> None:
    single = torch.zeros(15, 15, dtype=torch.bool)
    single[7, 6] = True
    every = torch.ones(15, 15).nonzero()
    for radius in (0, 1, 4, 9):
        disk = ((every - torch.tensor([7, 6])) ** 2).sum(1) <= radius**2
        assert torch.equal(near(every, single, radius), disk)


def test_course_in_quarters() -> None:
    scores = [1.0, 0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1]  # borders at frames 1, 3, 5, 7, 9
    got = course(scores)
    assert got.mean == pytest.approx(np.mean(scores)) and got.recall == pytest.approx(5 / 9)
    assert got.decay == pytest.approx(0.9 - 0.2)
    assert course([0.5]).decay == 0 and course([0.5]).recall == 0
    with pytest.raises(ValueError, match="at least one"):
        course([])


@pytest.mark.parametrize("count", [1, 2, 3, 38, 58, 300])
def test_quarters_are_the_toolkits(count: int) -> None:
    """Its numpy expression, without its 8-bit indices."""
    scores = np.random.default_rng(count).random(count)
    ids = (np.round(np.linspace(1, count, 5) + 1e-10) - 1).astype(int)
    want = scores[ids[0] : ids[1] + 1].mean() - scores[ids[3] : ids[4] + 1].mean()
    assert course(scores.tolist()).decay == pytest.approx(want)
