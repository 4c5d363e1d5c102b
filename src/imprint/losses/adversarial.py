"""The two sides of an adversarial game, and the weighted squared error that context encoders play it beside.

Shape suffixes: B samples, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError


def _exact(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def discriminator_loss(real_B: Tensor, fake_B: Tensor) -> Tensor:
    r"""Return the discriminator's loss (Goodfellow et al. 2014, arXiv 1406.2661, Eq. 1), to be minimised.

    - mean_b log s(r_b) - mean_b log(1 - s(f_b)),  s the sigmoid

    Args:
        real_B: logits r of real samples, any shape.
        fake_B: logits f of made ones, any shape.

    Returns:
        0-d loss, 2 ln 2 for a discriminator that does not know; float32, float64 for float64 logits.
    """
    with torch.autocast(real_B.device.type, enabled=False):
        return F.softplus(-_exact(real_B)).mean() + F.softplus(_exact(fake_B)).mean()


def fooling_loss(fake_B: Tensor) -> Tensor:
    r"""Return the generator's loss - mean_b log s(f_b), small when its samples pass for real.

    The form that does not vanish while the discriminator wins (arXiv 1406.2661, Sec. 3).

    Args:
        fake_B: logits f of made samples, any shape.

    Returns:
        0-d loss, ln 2 for a discriminator that does not know; float32, float64 for float64 logits.
    """
    with torch.autocast(fake_B.device.type, enabled=False):
        return F.softplus(-_exact(fake_B)).mean()


def weighted_l2(pred_BCHW: Tensor, target_BCHW: Tensor, weight_B1HW: Tensor) -> Tensor:
    r"""Return mean_bchw w_bhw (y_bchw - x_bchw)^2: squared error whose weight depends on the place.

    The mean is over all values, whatever their weights, as in the public code of context encoders (arXiv 1604.07379,
    Eq. 1 and Sec. 5.1: ten times the weight where the prediction overlaps what is visible).

    Args:
        pred_BCHW: predictions y.
        target_BCHW: targets x; no gradient reaches them.
        weight_B1HW: w >= 0, one per place; (1, 1, H, W) serves all images.

    Returns:
        0-d loss, float32 (float64 for float64 predictions).

    Raises:
        ConfigError: for shapes that do not fit.
    """
    fits = weight_B1HW.ndim == 4 and weight_B1HW.shape[0] in (1, len(pred_BCHW)) and weight_B1HW.shape[1] == 1
    if pred_BCHW.shape != target_BCHW.shape or not fits or weight_B1HW.shape[2:] != pred_BCHW.shape[2:]:
        raise ConfigError(
            f"weighted_l2: predictions {tuple(pred_BCHW.shape)}, targets {tuple(target_BCHW.shape)} and weights "
            f"{tuple(weight_B1HW.shape)} do not fit as (B, C, H, W), (B, C, H, W), (B or 1, 1, H, W)."
        )
    with torch.autocast(pred_BCHW.device.type, enabled=False):
        pred = _exact(pred_BCHW)
        error = (pred - target_BCHW.detach().to(pred.dtype)).square()
        return (error * weight_B1HW.detach().to(pred.dtype)).mean()
