"""NMS and RoIAlign in plain torch: against naive loops from their definitions, and through torchvision's functions."""

import math
import sys

import pytest
import torch

from imprint.backbones import torchvision_compat, torchvision_operators
from imprint.backbones.torchvision_operators import nms, roi_align


def boxes(count, seed=0, span=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * span
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 40], 1)


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, w) * max(0.0, h)
    total = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / total if total > 0 else 0.0


def naive_nms(boxes_N4, scores_N, threshold):
    kept = []
    for i in sorted(range(len(scores_N)), key=lambda i: -float(scores_N[i])):
        if all(iou(boxes_N4[i].tolist(), boxes_N4[j].tolist()) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_nms_is_the_greedy_loop(threshold, chunk, monkeypatch):
    monkeypatch.setattr(torchvision_operators, "NMS_CHUNK", chunk)
    given = boxes(120).double()
    scores = torch.rand(120, generator=torch.Generator().manual_seed(1)).double()
    assert nms(given, scores, threshold).tolist() == naive_nms(given, scores, threshold)


def test_nms_of_chains_ties_and_nothing():
    chain = torch.tensor([[float(3 * i), 0.0, 10.0 + 3 * i, 10.0] for i in range(30)])  # each overlaps the next
    falling = torch.linspace(1, 0, 30)
    assert nms(chain, falling, 0.5).tolist() == naive_nms(chain, falling, 0.5) == list(range(0, 30, 2))
    same = torch.tensor([[0.0, 0, 4, 4]]).repeat(3, 1)
    assert nms(same, torch.tensor([0.5, 0.5, 0.5]), 0.5).tolist() == [0]
    empty = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert empty.dtype == torch.int64 and empty.shape == (0,)
    points = torch.zeros(2, 4)  # without area: 0 / 0 overlaps nothing
    assert nms(points, torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]


def naive_align(x, rois, scale, bins, ratio, aligned):
    height, width = x.shape[2:]

    def sample(image, y, x_):
        if y < -1 or y > height or x_ < -1 or x_ > width:
            return torch.zeros(x.shape[1], dtype=x.dtype)
        y, x_ = max(y, 0.0), max(x_, 0.0)
        y0, x0 = min(int(y), height - 1), min(int(x_), width - 1)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        dy = 0.0 if y0 == height - 1 else y - y0
        dx = 0.0 if x0 == width - 1 else x_ - x0
        m = x[image]
        top = m[:, y0, x0] * (1 - dx) + m[:, y0, x1] * dx
        return top * (1 - dy) + (m[:, y1, x0] * (1 - dx) + m[:, y1, x1] * dx) * dy

    out = torch.zeros(len(rois), x.shape[1], *bins, dtype=x.dtype)
    for k, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0.0) for c in corners)
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        ny, nx = (ratio, ratio) if ratio > 0 else (math.ceil(h / bins[0]), math.ceil(w / bins[1]))
        for p in range(bins[0]):
            for q in range(bins[1]):
                for i in range(ny):
                    for j in range(nx):
                        y = y1 + (p + (i + 0.5) / ny) * h / bins[0]
                        out[k, :, p, q] += sample(int(image), y, x1 + (q + (j + 0.5) / nx) * w / bins[1]) / (ny * nx)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [2, 0])
def test_roi_align_is_the_loop_over_samples_inside_and_outside(ratio, aligned, monkeypatch):
    monkeypatch.setattr(torchvision_operators, "BAG_ROWS", 200)  # several parts
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 9, 12, generator=generator, dtype=torch.float64)
    rois = torch.tensor(
        [[0, 4.0, 4, 40, 30], [1, 0, 0, 48, 36], [0, -9, -12, 20, 20],
         [1, 30, 20, 70, 60], [0, 5, 5, 5.5, 6], [1, 9, 9, 9, 9]],
        dtype=torch.float64,
    )  # fmt: skip
    got = roi_align(x, rois, 0.25, 3, 2, ratio, aligned)
    torch.testing.assert_close(got, naive_align(x, rois, 0.25, (3, 2), ratio, aligned))


def test_roi_align_of_a_ramp_is_the_ramp_at_the_centres_of_the_bins():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # value = column, a cell's centre at column + 0.5
    got = roi_align(ramp, torch.tensor([[0.0, 2, 2, 10, 10]]), 1.0, 4, 4, 2, True)
    torch.testing.assert_close(got[0, 0, 0], torch.tensor([2.5, 4.5, 6.5, 8.5]))


def test_roi_align_has_the_right_gradient_and_keeps_types():
    rois = torch.tensor([[0, 1.0, 1, 6, 5], [0, 0, 2, 3, 7]], dtype=torch.float64)
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, 1.0, 2, 2, 2, True), (x,))
    half = roi_align(x.detach().bfloat16(), rois.float(), 1.0, 2, 2, 2, True)
    assert half.dtype == torch.bfloat16
    none = roi_align(x, rois[:0], 1.0, 2, 3, 2, True)
    assert none.shape == (0, 2, 2, 3)
    none.sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_torchvision_runs_on_what_is_there_and_gives_the_same():
    torchvision_compat.detection_models()
    from torchvision import ops

    given, scores = boxes(200, 3), torch.rand(200, generator=torch.Generator().manual_seed(4))
    classes = torch.arange(200) % 3
    assert ops.nms(given, scores, 0.5).tolist() == naive_nms(given, scores, 0.5)
    want = [i for i in scores.argsort(descending=True).tolist()]
    kept = {i for c in range(3) for i in _of_class(given, scores, classes, c)}
    assert ops.batched_nms(given, scores, classes, 0.5).tolist() == [i for i in want if i in kept]
    x = torch.randn(1, 4, 10, 10)
    rois = torch.tensor([[0, 2.0, 2, 9, 9], [0, 0, 1, 5, 10]])
    for aligned in (True, False):
        expected = naive_align(x, rois, 1.0, (7, 7), 2, aligned)
        torch.testing.assert_close(ops.roi_align(x, rois, 7, 1.0, 2, aligned), expected, rtol=1e-4, atol=1e-5)


def _of_class(given, scores, classes, c):
    rows = (classes == c).nonzero()[:, 0]
    return [int(rows[i]) for i in naive_nms(given[rows], scores[rows], 0.5)]


@pytest.mark.skipif(torchvision_compat.OPERATORS_AVAILABLE, reason="torchvision's compiled operators load here")
def test_operators_without_an_implementation_still_say_so():
    torchvision_compat.detection_models()
    with pytest.raises(RuntimeError, match="custom C\\+\\+ ops"):
        sys.modules["torchvision.ops.roi_pool"].roi_pool(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 2)
