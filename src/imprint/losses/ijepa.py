"""Prediction of layer-normalised target tokens (I-JEPA).

Shape suffixes: T target blocks, E contexts, B images, N patches, K patches of a block, D width.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError, unknown

Distance = Literal["smooth_l1", "l2"]


@torch.no_grad()
def block_targets(tokens_BND: Tensor, places_TBK: Tensor) -> Tensor:
    """Return the tokens of the target blocks, each token layer-normalised without gain or shift (I-JEPA, public code).

    The public code normalises all tokens (eps 1e-5), then picks; a token's norm does not look at others, so picking
    first is the same for less work.

    Args:
        tokens_BND: what the target encoder says of the full image.
        places_TBK: int64, the patches of each block of each image.

    Returns:
        (T, B, K, D), float32 (float64 for float64 tokens), without gradient.

    Raises:
        ConfigError: for shapes that do not fit.
    """
    if tokens_BND.ndim != 3 or places_TBK.ndim != 3 or places_TBK.shape[1] != tokens_BND.shape[0]:
        raise ConfigError(
            f"block_targets: tokens {tuple(tokens_BND.shape)} and places {tuple(places_TBK.shape)} do not fit as "
            "(B, N, D) and (T, B, K)."
        )
    width = tokens_BND.shape[-1]
    every_TBND = tokens_BND.detach().expand(places_TBK.shape[0], -1, -1, -1)
    picked_TBKD = every_TBND.gather(2, places_TBK[..., None].expand(-1, -1, -1, width))
    dtype = torch.float64 if tokens_BND.dtype == torch.float64 else torch.float32
    with torch.autocast(tokens_BND.device.type, enabled=False):
        return F.layer_norm(picked_TBKD.to(dtype), (width,))


def block_prediction(pred_SKD: Tensor, target_TBKD: Tensor, distance: Distance = "smooth_l1") -> Tensor:
    r"""Return the mean over all values of the distance between predictions and targets (arXiv 2301.08243, Sec. 3).

    `smooth_l1` is the public code's: d^2 / 2 for |d| < 1, |d| - 1/2 beyond; `l2` is the paper's text: d^2 (there summed
    over a block's values, here their mean, so that the scale does not change with the sizes).

    Args:
        pred_SKD: predictions (T E B, K, D), block-major, then context, then image.
        target_TBKD: targets, the same for every context; no gradient reaches them.
        distance: which.

    Returns:
        0-d loss, float32 (float64 for float64 predictions).

    Raises:
        ConfigError: for shapes that do not fit or an unknown distance.
    """
    if distance not in get_args(Distance):
        raise unknown("distance", distance, get_args(Distance))
    blocks, images = target_TBKD.shape[:2]
    if target_TBKD.ndim != 4 or pred_SKD.shape[0] % (blocks * images) or pred_SKD.shape[1:] != target_TBKD.shape[2:]:
        raise ConfigError(
            f"block_prediction: predictions {tuple(pred_SKD.shape)} and targets {tuple(target_TBKD.shape)} do not fit "
            "as (T E B, K, D) and (T, B, K, D)."
        )
    dtype = torch.float64 if pred_SKD.dtype == torch.float64 else torch.float32
    with torch.autocast(pred_SKD.device.type, enabled=False):
        pred_TEBKD = pred_SKD.to(dtype).unflatten(0, (blocks, -1, images))
        target_TEBKD = target_TBKD.detach().to(dtype)[:, None].expand_as(pred_TEBKD)
        if distance == "l2":
            return F.mse_loss(pred_TEBKD, target_TEBKD)
        return F.smooth_l1_loss(pred_TEBKD, target_TEBKD)
