"""Mask generators: statistics of our own draws at the case's parameters; and MaskFeat's histograms.

Not offered: `out_masks` and `out_example_*`, the public codes' own random draws (their generators are not ours).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from case import Case, Out, arrays, tensor

from imprint.data.mask_kinds import BlockMask, Mask, ShareMask, SpreadMask, UnitMask
from imprint.data.masks import Place, draw_masks, draw_with_placements, most_masked
from imprint.losses.masked_regression import masked_smooth_l1
from imprint.ops.hog import hog, hog_patches

DRAWS = 20_000


def _place(rows: int, step: int = 0) -> Place:
    return Place(seed=0, epoch=0, step=step, index_B=np.arange(rows), first=0, total=rows)


def _counts(masks_RN: np.ndarray, grid: tuple[int, int]) -> Out:
    count = masks_RN.sum(axis=1)
    return {
        "out_count_mean": np.array(count.mean()),
        "out_count_std": np.array(count.std()),
        "out_count_sem": np.array(count.std() / np.sqrt(count.size)),
        "out_count_min": np.array(count.min()),
        "out_count_max": np.array(count.max()),
        "out_count_hist": np.bincount(count, minlength=masks_RN.shape[1] + 1) / count.size,
        "out_position_freq": masks_RN.mean(axis=0).reshape(grid),
    }


def _blocks(tried: np.ndarray) -> Out:
    """Heights, widths and aspects of the placements that were tried; those of no area count in their share only."""
    down, across = tried.shape
    real = tried[1:, 1:]
    h, w = np.arange(1, down)[:, None], np.arange(1, across)[None, :]
    total, area = real.sum(), np.broadcast_to(h * w, real.shape)
    aspect = (h / w)[real > 0]
    logs = np.log(h / w)
    mean = (real * logs).sum() / total
    return {
        "out_block_zero_area_frac": np.array(1 - total / tried.sum()),
        "out_block_h_hist": np.r_[0, real.sum(axis=1) / total, 0],
        "out_block_w_hist": np.r_[0, real.sum(axis=0) / total, 0],
        "out_block_logaspect_mean": np.array(mean),
        "out_block_logaspect_std": np.array(np.sqrt((real * (logs - mean) ** 2).sum() / total)),
        "out_block_aspect_min": np.array(aspect.min()),
        "out_block_aspect_max": np.array(aspect.max()),
        "out_block_area_mean": np.array((real * area).sum() / total),
    }


def _grid(case: Case) -> tuple[int, int]:
    return int(case["grid"][0]), int(case["grid"][1])


def beit_case(case: Case) -> Out:
    """BEiT's blocks."""
    grid = _grid(case)
    mask = BlockMask(
        name="mask",
        grid=grid,
        patches=int(case["num_masking_patches"]),
        min_block=int(case["min_num_patches"]),
        max_block=int(case["max_num_patches"]),
        min_aspect=float(case["min_aspect"]),
    )
    masks, tried = draw_with_placements(mask, _place(DRAWS))
    return _counts(masks[0], grid) | _blocks(tried)


def ibot_case(case: Case) -> Out:
    """iBOT's blocks, and its random masks of a fixed share of 0.3."""
    grid = _grid(case)
    means, spreads = np.atleast_1d(case["pred_ratio"]), np.atleast_1d(case["pred_ratio_var"])
    shares = tuple((float(m), float(s)) for m, s in zip(means, np.broadcast_to(spreads, means.shape), strict=True))
    masks, tried = draw_with_placements(ShareMask(name="mask", grid=grid, shares=shares), _place(DRAWS))
    scattered = ShareMask(name="mask", grid=grid, shares=((0.3, 0.0),), shape="random")
    random = draw_masks(scattered, _place(DRAWS))["mask"][0]
    counts = np.unique(random.sum(axis=1))
    assert counts.size == 1, "a fixed share masks a fixed number"
    own = {"out_rand_count": counts[0], "out_rand_position_freq": random.mean(axis=0).reshape(grid)}
    return _counts(masks[0], grid) | _blocks(tried) | own


def dinov2_case(case: Case) -> Out:
    """DINOv2's batches: which crops are masked, with spread shares."""
    grid, crops = _grid(case), int(case["n_crops"])
    low, high = (float(x) for x in case["mask_ratio"])
    count = 2 if crops % 2 == 0 else 1
    mask = SpreadMask(
        name="mask",
        count=count,
        grid=grid,
        low=low,
        high=high,
        probability=float(case["mask_probability"]),
        min_block=int(case["min_num_patches"]),
        max_block=float(case["max_num_patches"]) / (grid[0] * grid[1]),
    )
    batches = [draw_with_placements(mask, _place(crops // count, step)) for step in range(DRAWS // crops)]
    masks_SRN = np.stack([masks.reshape(crops, -1) for masks, _ in batches])
    masked = int((masks_SRN.sum(axis=2) > 0).sum(axis=1).max())
    counts = np.sort(masks_SRN.sum(axis=2), axis=1)[:, crops - masked :]
    own = {
        "out_upperbound": np.array(most_masked(mask, crops // count)),
        "out_n_masked_crops": np.array(masked),
        "out_counts_sorted_mean": counts.mean(axis=0),
        "out_counts_sorted_std": counts.std(axis=0),
    }
    tried = np.sum([placed for _, placed in batches], axis=0)
    return _counts(masks_SRN.reshape(-1, masks_SRN.shape[-1]), grid) | _blocks(tried) | own


def simmim_case(case: Case) -> Out:
    """SimMIM's units."""
    side = int(case["input_size"]) // int(case["model_patch_size"])
    unit = int(case["mask_patch_size"]) // int(case["model_patch_size"])
    mask: Mask = UnitMask(name="mask", grid=(side, side), unit=unit, ratio=float(case["mask_ratio"]))
    masks = draw_masks(mask, _place(DRAWS // 8))["mask"][0]
    cells = masks.reshape(-1, side, side)[:, ::unit, ::unit].sum(axis=(1, 2))
    return _counts(masks, (side, side)) | {"out_mask_count_cells": cells.max()}


def maskfeat_case(case: Case) -> Out:
    """Histograms, the targets of the masked patches, and the squared error on them."""
    pred, cell, patch = tensor(case["pred"], True), int(case["cell"]), int(case["patch_size"])
    histograms = hog(tensor(case["images"]), bins=int(case["nbins"]), cell=cell)
    mask = tensor(case["mask"])
    rows = hog_patches(histograms, patch // cell)[mask.flatten(1).bool()]
    loss = masked_smooth_l1(pred, rows)
    loss.backward()
    return arrays(
        {
            "out_hog": histograms,
            "out_hog_float32": hog(tensor(case["images"]).float(), bins=int(case["nbins"]), cell=cell),
            "out_target": rows,
            "out_loss": loss,
            "grad_pred": pred.grad,
        }
    )


CASES: dict[str, Callable[[Case], Out]] = {
    "maskfeat_hog": maskfeat_case,
    "maskgen_beit": beit_case,
    "maskgen_dinov2": dinov2_case,
    "maskgen_ibot": ibot_case,
    "maskgen_simmim": simmim_case,
}

LOSSES: dict[str, tuple[str, ...]] = {"maskfeat_hog": ("pred",)}
