"""The measures of video object segmentation: region similarity J, boundary accuracy F, and their course over time.

They follow Perazzi et al., CVPR 2016 ("A benchmark dataset and evaluation methodology for video object segmentation")
in the form of the DAVIS 2017 toolkit (Pont-Tuset et al., arXiv 1704.00675).
Shapes: H x W pixels, K objects, P boundary pixels, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BOUND = 0.008
RECALL = 0.5
VOID = 255


def region(predicted_HW: Tensor, truth_HW: Tensor, objects: Sequence[int]) -> Tensor:
    """Return J of every object, float64 (K,): |A and B| / |A or B|, 1 where both are empty.

    All objects are counted in one pass. Pixels whose truth is void (255) count for nothing.

    Args:
        predicted_HW: uint8 numbers of objects.
        truth_HW: the same from the annotation.
        objects: the numbers to score, within 1 to 254.
    """
    predicted = predicted_HW.flatten().long()
    truth = truth_HW.flatten().long()
    pairs = torch.bincount(predicted * 256 + truth, minlength=65536).view(256, 256).double()
    pairs[:, VOID] = 0
    ids = torch.as_tensor(list(objects), device=pairs.device)
    both = pairs.diagonal()[ids]
    either = pairs.sum(0)[ids] + pairs.sum(1)[ids] - both
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))


def boundary(mask_HW: Tensor) -> Tensor:
    """Return the boundary of a region, bool (H, W): pixels that differ from the one to the right, below, or both.

    In the last row only the right neighbour counts, in the last column only the one below, and the last corner is
    never a boundary: the toolkit's map, one pixel thin.
    """
    m = mask_HW.bool()
    edge = torch.zeros_like(m)
    edge[:, :-1] |= m[:, :-1] ^ m[:, 1:]
    edge[:-1] |= m[:-1] ^ m[1:]
    edge[:-1, :-1] |= m[:-1, :-1] ^ m[1:, 1:]
    return edge


def contour_accuracy(predicted_HW: Tensor, truth_HW: Tensor, objects: Sequence[int], bound: float = BOUND) -> Tensor:
    """Return F of every object, float64 (K,): 2 P R / (P + R).

    P is the share of the predicted boundary with a true boundary pixel at most r away (Euclid; the same as dilating
    by a disk of radius r), R that of the true boundary near the predicted one, r = ceil(bound * diagonal). Where only
    one of the boundaries is empty F is 0, where both are it is 1.

    Args:
        predicted_HW: see `region`.
        truth_HW: see `region`.
        objects: see `region`.
        bound: tolerance as a share of the image diagonal; 1 or more is taken as pixels.
    """
    radius = int(bound) if bound >= 1 else math.ceil(bound * math.hypot(*truth_HW.shape))
    known = truth_HW != VOID
    scores = []
    for k in objects:
        ours, theirs = boundary((predicted_HW == k) & known), boundary(truth_HW == k)
        n_ours, n_theirs = int(ours.sum()), int(theirs.sum())
        if n_ours == 0 or n_theirs == 0:
            scores.append(float(n_ours == n_theirs))
            continue
        precision = float(near(ours.nonzero(), theirs, radius).sum()) / n_ours
        recall = float(near(theirs.nonzero(), ours, radius).sum()) / n_theirs
        scores.append(2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0)
    return torch.tensor(scores, dtype=torch.float64)


def near(points_P2: Tensor, map_HW: Tensor, radius: int) -> Tensor:
    """Return which points (row, column) have a true pixel of `map_HW` at most `radius` away, bool (P,).

    A disk is one run of pixels per row, and a running count along rows says whether a run holds anything: 2 radius + 1
    look-ups per point instead of a dilation of the whole picture.
    """
    pad = radius + 1
    counts = torch.nn.functional.pad(map_HW.int(), (pad, radius, radius, radius)).cumsum(1, dtype=torch.int32)
    down = torch.arange(-radius, radius + 1, device=map_HW.device)
    half = torch.tensor([math.isqrt(radius**2 - d**2) for d in range(-radius, radius + 1)], device=map_HW.device)
    rows = points_P2[:, :1] + radius + down
    last = points_P2[:, 1:] + pad + half
    return (counts[rows, last] > counts[rows, last - 2 * half - 1]).any(1)


@dataclass(frozen=True)
class Course:
    """What becomes of a score over the frames of a video.

    Attributes:
        mean: over frames.
        recall: share of frames above 0.5.
        decay: mean of the first quarter of the frames less that of the last.
    """

    mean: float
    recall: float
    decay: float


def course(scores_T: Sequence[float]) -> Course:
    """Return mean, recall and decay of the scores of one object; quarters share their border frames, as in the toolkit.

    Raises:
        ValueError: without a single score.
    """
    count = len(scores_T)
    if count == 0:
        raise ValueError("a course needs at least one score")
    values = torch.tensor(scores_T, dtype=torch.float64)
    # Borders of four bins over frames 1..T, rounded half to even after a nudge upwards.
    edges = [round(1 + (count - 1) * i / 4 + 1e-10) - 1 for i in range(5)]
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return Course(float(values.mean()), float((values > RECALL).double().mean()), float(first.mean() - last.mean()))
