"""Detection's two operators, `nms` and `roi_align`, in plain torch, for machines where torchvision's own do not load.

Both give torchvision's numbers within float rounding, work on any device, and RoIAlign's gradient is autograd's.
`torchvision_compat` registers them.

Shapes: N boxes, K regions, B images, C channels, H x W cells of a map, P x Q bins of a region, S samples, 4 = (x1, y1,
x2, y2).
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
from torch import Tensor

NMS_CHUNK = 1024
"""Boxes compared with as many others at once, so that the IoUs in memory are at most this squared."""

BAG_ROWS = 1 << 24
"""Corner reads of RoIAlign that are listed at once (12 bytes each)."""


def nms(boxes_N4: Tensor, scores_N: Tensor, iou_threshold: float) -> Tensor:
    """Return int64 indices of the boxes that stay, by falling score.

    A box goes when its IoU with a better one that stays is above the threshold. Within a chunk of boxes this is the
    fixed point of keep_j = not any_i<j (keep_i and IoU_ij > t), which a triangular system reaches in as many rounds as
    the longest chain of suppressions, a handful; ties keep the order of the input.

    Args:
        boxes_N4: corners, floats.
        scores_N: one per box.
        iou_threshold: in [0, 1].
    """
    order_N = scores_N.argsort(descending=True, stable=True)
    wide = boxes_N4.double() if boxes_N4.dtype == torch.float64 else boxes_N4.float()
    sorted_N4 = wide[order_N]
    kept: list[Tensor] = []
    kept_4 = sorted_N4[:0]
    for start in range(0, len(order_N), NMS_CHUNK):
        chunk_4 = sorted_N4[start : start + NMS_CHUNK]
        free = torch.ones(len(chunk_4), dtype=torch.bool, device=chunk_4.device)
        for part_4 in kept_4.split(NMS_CHUNK):
            free &= ~_overlaps(part_4, chunk_4, iou_threshold).any(0)
        alive = free.nonzero()[:, 0]
        chunk_4 = chunk_4[alive]
        beats = _overlaps(chunk_4, chunk_4, iou_threshold).triu(1)
        stays = torch.ones(len(chunk_4), dtype=torch.bool, device=chunk_4.device)
        while True:
            following = ~(beats & stays[:, None]).any(0)
            if torch.equal(following, stays):
                break
            stays = following
        kept.append(order_N[start + alive[stays]])
        kept_4 = torch.cat([kept_4, chunk_4[stays]])
    return torch.cat(kept) if kept else order_N


def _overlaps(a_N4: Tensor, b_M4: Tensor, threshold: float) -> Tensor:
    """Return bool (N, M): IoU above the threshold; boxes without area overlap nothing."""
    corner = torch.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    sides = (torch.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:]) - corner).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]
    area_a = (a_N4[:, 2] - a_N4[:, 0]) * (a_N4[:, 3] - a_N4[:, 1])
    area_b = (b_M4[:, 2] - b_M4[:, 0]) * (b_M4[:, 3] - b_M4[:, 1])
    return shared / (area_a[:, None] + area_b[None] - shared) > threshold


def roi_align(
    input: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return regions cut from maps by RoIAlign (Mask R-CNN, arXiv 1703.06870, Sec. 3), shape (K, C, P, Q).

    A bin is the mean of bilinear samples, so a weighted sum of rows of the map in channels-last order: one bag of rows
    for every bin, which torch sums without listing the samples' values. Samples more than one cell outside count 0.

    Args:
        input: maps (B, C, H, W); half precision is computed in float32 and returned as it came.
        rois: (K, 5): index of the image, then corners in image units.
        spatial_scale: cells per image unit.
        pooled_height: P.
        pooled_width: Q.
        sampling_ratio: samples per bin and axis; 0 or less takes as many as the bin has cells, rounded up.
        aligned: whether a cell's centre lies at +0.5 (else coordinates are off by half a cell and regions of less than
            one cell are widened to one, as in the first version of the operator).
    """
    maps = input if input.dtype in (torch.float32, torch.float64) else input.float()
    batch, channels, height, width = maps.shape
    regions = rois.detach().to(maps.dtype)
    corner_K4 = regions[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    size_K2 = corner_K4[:, 2:] - corner_K4[:, :2]
    if not aligned:
        size_K2 = size_K2.clamp(min=1.0)
    rows_RC = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    out = maps.new_zeros(len(regions), pooled_height * pooled_width, channels)
    parts: list[Tensor] = []
    places: list[Tensor] = []
    for samples_y, samples_x, chosen in _same_sampling(size_K2, pooled_height, pooled_width, sampling_ratio):
        reads = pooled_height * pooled_width * samples_y * samples_x * 4
        for some in chosen.split(max(1, BAG_ROWS // max(1, reads))):
            y_index, y_weight = _axis(corner_K4[some, 1], size_K2[some, 1], pooled_height, samples_y, height)
            x_index, x_weight = _axis(corner_K4[some, 0], size_K2[some, 0], pooled_width, samples_x, width)
            first = regions[some, 0].long() * (height * width)
            index = (
                first[:, None, None, None, None] + (y_index * width)[:, :, None, :, None] + x_index[:, None, :, None]
            )
            weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None]
            bags = torch.nn.functional.embedding_bag(
                index.flatten(0, 2).flatten(1), rows_RC, per_sample_weights=weight.flatten(0, 2).flatten(1), mode="sum"
            )
            parts.append(bags.unflatten(0, (len(some), -1)))
            places.append(some)
    if parts:
        out = out.index_copy(0, torch.cat(places), torch.cat(parts))
    else:
        out = out + rows_RC[:0].sum()  # no regions: an empty result that gradients may still pass
    return out.transpose(1, 2).unflatten(2, (pooled_height, pooled_width)).to(input.dtype)


def _same_sampling(size_K2: Tensor, bins_y: int, bins_x: int, ratio: int) -> list[tuple[int, int, Tensor]]:
    """Return (samples down, samples across, regions) for every kind of sampling that occurs."""
    if len(size_K2) == 0:
        return []
    if ratio > 0:
        return [(ratio, ratio, torch.arange(len(size_K2), device=size_K2.device))]
    down, across = (size_K2[:, 1] / bins_y).ceil().long(), (size_K2[:, 0] / bins_x).ceil().long()
    kinds, of_K = torch.unique(torch.stack([down, across], 1), dim=0, return_inverse=True)
    return [
        (int(y), int(x), (of_K == kind).nonzero()[:, 0])
        for kind, (y, x) in enumerate(kinds.tolist())
        if y > 0 and x > 0
    ]


def _axis(start_K: Tensor, size_K: Tensor, bins: int, samples: int, cells: int) -> tuple[Tensor, Tensor]:
    """Return cells and weights (K, bins, 2 samples) along one axis: bilinear interpolation is a product of two such."""
    steps = (torch.arange(bins * samples, device=start_K.device, dtype=start_K.dtype) + 0.5) / samples
    at = start_K[:, None] + steps * (size_K / bins)[:, None]
    inside = (at >= -1.0) & (at <= cells)
    at = at.clamp(min=0.0)
    low = at.long().clamp(max=cells - 1)
    high = (low + 1).clamp(max=cells - 1)
    share = torch.where(low == cells - 1, torch.zeros_like(at), at - low)
    scale = inside.to(at.dtype) / samples
    index = torch.stack([low, high], -1).unflatten(1, (bins, samples)).flatten(2)
    weight = torch.stack([(1 - share) * scale, share * scale], -1).unflatten(1, (bins, samples)).flatten(2)
    return index, weight


def register(library: torch.library.Library) -> None:
    """Give torch the schemas and these implementations of `torchvision::nms` and `torchvision::roi_align`."""
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    for device in ("CPU", "CUDA", "MPS"):  # not composite: torchvision adds the shape function for tracing itself
        library.impl("nms", nms, device)
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")


def open_guards() -> None:
    """Let torchvision's Python functions call the registered operators: they ask first whether the compiled ones load.

    Only the two functions that have an implementation here stop asking; the others still say that theirs is missing.
    """
    importlib.import_module("torchvision.ops")
    boxes: Any = sys.modules["torchvision.ops.boxes"]
    align: Any = sys.modules["torchvision.ops.roi_align"]
    boxes._assert_has_ops = lambda: None
    align._assert_has_ops = lambda: None
    align._has_ops = lambda: True
