"""Attention rollout: how much of each patch reaches the class token through all blocks (arXiv 2005.00928, Sec. 3).

Shapes: B images, T tokens (prefix first), N = gh * gw patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.viz.attention import Maps, at_a_time, grid_of, seen_by, sheet_of
from imprint.viz.raster import Picture


def rollout_matrix(encoder: Encoder, images_BCHW: Tensor, residual: float = 0.5) -> Tensor:
    """Return the rolled-out attention (B, T, T): A_L ... A_2 A_1, its rows sum to 1.

    A_l = (1 - r) W_l + r I with rows brought to sum 1 again, W_l the mean over heads of block l and r the share of the
    residual connection (Abnar and Zuidema, arXiv 2005.00928, Sec. 3: r = 0.5). Blocks are taken one at a
    time: beside the product, one block's attention is in memory.

    Args:
        encoder: an encoder with attention.
        images_BCHW: normalised images, on the encoder's device.
        residual: r, in [0, 1).

    Raises:
        ConfigError: for an encoder without attention.
    """
    product: Tensor | None = None
    with torch.no_grad():
        for weights_BHTT in encoder.attentions(images_BCHW):
            mixed = (1 - residual) * weights_BHTT.float().mean(1)
            mixed.diagonal(dim1=1, dim2=2).add_(residual)
            mixed /= mixed.sum(2, keepdim=True)
            product = mixed if product is None else mixed @ product
    assert product is not None  # every encoder with attention has a block
    return product


def rollout_maps(encoder: Encoder, images_BCHW: Tensor, residual: float = 0.5) -> Maps:
    """Return the rollout from the class token to the patches, float32 (B, gh, gw); see `rollout_matrix`.

    Without a class token, the mean over all patches' rows.

    Raises:
        ConfigError: for an encoder without attention.
    """
    grid = grid_of(encoder, images_BCHW)
    parts = [
        seen_by(encoder, rollout_matrix(encoder, images_BCHW[rows], residual)[:, None], images_BCHW)
        for rows in at_a_time(encoder, len(images_BCHW), grid)
    ]
    return torch.cat(parts).numpy().reshape(len(images_BCHW), *grid)


def rollout_sheet(images: list[Picture], maps: Maps, *, side: int = 112) -> Picture:
    """Return a sheet: a column per image, the image above its rollout."""
    return sheet_of(images, [list(maps)], side)
