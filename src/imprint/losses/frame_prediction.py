"""What a predicted frame is judged by: pixels, their gradients, features; and the measures PSNR and sharpness.

Mathieu, Couprie, LeCun 2015, arXiv 1511.05440, and its public code, which takes means where the paper sums.

Shape suffixes: B frames, C channels, H x W pixels, K places, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError

FLOOR = 1e-10
"""Smallest error that a measure tells from none (100 dB for PSNR)."""


def lp_error(pred_BCHW: Tensor, target_BCHW: Tensor, p: int = 1) -> Tensor:
    """Return the mean of |y - x|^p over all values.

    Args:
        pred_BCHW: predictions y.
        target_BCHW: true frames x; no gradient reaches them.
        p: 1 or 2.

    Returns:
        0-d, float32 (float64 for float64 predictions).

    Raises:
        ConfigError: for shapes that differ or another p.
    """
    _check("lp_error", pred_BCHW, target_BCHW)
    if p not in (1, 2):
        raise ConfigError(f"lp_error: p must be 1 or 2, got {p}.")
    with torch.autocast(pred_BCHW.device.type, enabled=False):
        y, x = _floats(pred_BCHW), _floats(target_BCHW.detach())
        return F.l1_loss(y, x) if p == 1 else F.mse_loss(y, x)


def gradient_difference(pred_BCHW: Tensor, target_BCHW: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Return how far apart the steps between neighbouring pixels are in size: it keeps edges sharp.

    mean_ij | |x_ij - x_i-1,j| - |y_ij - y_i-1,j| |^alpha + mean_ij | |x_i,j-1 - x_ij| - |y_i,j-1 - y_ij| |^alpha,
    each mean over all pairs of neighbours.

    Args:
        pred_BCHW: predictions y, two pixels or more along both sides.
        target_BCHW: true frames x; no gradient reaches them.
        alpha: exponent, at least 1.

    Returns:
        0-d, float32 (float64 for float64 predictions).

    Raises:
        ConfigError: for shapes that differ, frames of a single row or column, or an exponent below 1.
    """
    _check("gradient_difference", pred_BCHW, target_BCHW)
    if alpha < 1 or min(pred_BCHW.shape[-2:]) < 2:
        raise ConfigError(
            f"gradient_difference: alpha must be at least 1 (got {alpha:g}) and frames at least 2 x 2 pixels (got "
            f"{tuple(pred_BCHW.shape[-2:])})."
        )
    with torch.autocast(pred_BCHW.device.type, enabled=False):
        y, x = _floats(pred_BCHW), _floats(target_BCHW.detach())
        apart = [x.diff(dim=side).abs() - y.diff(dim=side).abs() for side in (-2, -1)]
        terms = [a.abs() if alpha == 1 else a.abs().pow(alpha) for a in apart]
        return terms[0].mean() + terms[1].mean()


@torch.no_grad()
def psnr(pred_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Return the peak signal to noise ratio in decibels, 10 log10(1 / mean squared error), per frame (B,).

    Args:
        pred_BCHW: predictions, values in [0, 1].
        target_BCHW: true frames, the same.

    Returns:
        float32 (float64 for float64 predictions), at most 100.

    Raises:
        ConfigError: for shapes that differ.
    """
    _check("psnr", pred_BCHW, target_BCHW)
    error_B = (_floats(pred_BCHW) - _floats(target_BCHW)).square().flatten(1).mean(1)
    return -10.0 * error_B.clamp_min(FLOOR).log10()


@torch.no_grad()
def sharpness(pred_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    r"""Return how well the sharpness of the true frame is met, in decibels, per frame (B,).

    10 log10(4 / mean(| |dx y| - |dx x| | + | |dy y| - |dy x| |)) with dx and dy the steps from the left and the upper
    neighbour, of values from -1 to 1 (a range of 2, whose square is 4), over pixels that have both. The public code has
    the two differences apart, as here; the paper adds the two steps of a frame up before it compares.

    Args:
        pred_BCHW: predictions, values in [0, 1] (they are brought to [-1, 1] here).
        target_BCHW: true frames, the same.

    Returns:
        float32 (float64 for float64 predictions), at most 106; higher is better.

    Raises:
        ConfigError: for shapes that differ.
    """
    _check("sharpness", pred_BCHW, target_BCHW)
    y, x = 2.0 * _floats(pred_BCHW), 2.0 * _floats(target_BCHW)
    down = (y.diff(dim=-2).abs() - x.diff(dim=-2).abs()).abs()[..., :, 1:]
    across = (y.diff(dim=-1).abs() - x.diff(dim=-1).abs()).abs()[..., 1:, :]
    error_B = (down + across).flatten(1).mean(1)
    return 10.0 * (4.0 / error_B.clamp_min(FLOOR)).log10()


def normalised_tokens(tokens_BKD: Tensor) -> Tensor:
    """Return each token less its mean over D and divided by its deviation (layer norm without gain, eps 1e-5).

    The targets of V-JEPA (arXiv 2404.08471, public code). Gradients pass; float32 (float64 for float64 tokens).
    """
    with torch.autocast(tokens_BKD.device.type, enabled=False):
        return F.layer_norm(_floats(tokens_BKD), tokens_BKD.shape[-1:])


def token_l1(pred_BKD: Tensor, target_BKD: Tensor) -> Tensor:
    """Return the mean of |y - x| over all values (V-JEPA, arXiv 2404.08471, Eq. 1).

    Args:
        pred_BKD: predictions.
        target_BKD: features to be met; the caller stops the gradient.

    Returns:
        0-d, float32 (float64 for float64 predictions).

    Raises:
        ConfigError: for shapes that differ.
    """
    _check("token_l1", pred_BKD, target_BKD)
    with torch.autocast(pred_BKD.device.type, enabled=False):
        return F.l1_loss(_floats(pred_BKD), target_BKD.to(_floats(pred_BKD).dtype))


def _check(name: str, pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape:
        raise ConfigError(f"{name}: predictions {tuple(pred.shape)} and targets {tuple(target.shape)} differ in shape.")


def _floats(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
