"""SimMIM's loss on pixels (arXiv 2111.09886).

Shape suffixes: B images, C channels, H x W pixels, h x w patches.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError

Error = Literal["l1", "l2"]


def masked_pixel_loss(
    pred_BCHW: Tensor,
    target_BCHW: Tensor,
    mask_Bhw: Tensor,
    *,
    error: Error = "l1",
    mass: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Return the mean error over the values of masked pixels (Sec. 3.4; public code).

    (1/C) sum_bchw m_bhw |y_bchw - x_bchw|^e / (sum_bhw m_bhw + eps),  e = 1 (l1) or 2 (l2), m spread over the pixels of
    each patch.

    Neither the difference nor the mask over pixels is kept: forward streams over images, backward fills the gradient.

    Args:
        pred_BCHW: predictions y.
        target_BCHW: pixels x; no gradient reaches them.
        mask_Bhw: True or 1 where a patch is masked; h divides H, w divides W.
        error: absolute or squared.
        mass: sum of masked patches to divide by instead of this batch's, 0-d: the mean over processes, where each has
            its own number.
        eps: added to the number of masked pixels.

    Returns:
        0-d loss, float32 (float64 for float64 predictions); 0 when nothing is masked.

    Raises:
        ConfigError: for shapes that do not fit, or an unknown error.
    """
    height, width = pred_BCHW.shape[2:]
    fits = pred_BCHW.shape == target_BCHW.shape and mask_Bhw.ndim == 3 and mask_Bhw.shape[0] == pred_BCHW.shape[0]
    if not fits or height % mask_Bhw.shape[1] or width % mask_Bhw.shape[2]:
        raise ConfigError(
            f"masked_pixel_loss: predictions {tuple(pred_BCHW.shape)}, targets {tuple(target_BCHW.shape)} and mask "
            f"{tuple(mask_Bhw.shape)} do not fit as (B, C, H, W), (B, C, H, W), (B, h, w) with h | H and w | W."
        )
    if error not in ("l1", "l2"):
        raise ConfigError(f"masked_pixel_loss: error '{error}' is neither l1 nor l2.")
    dtype = torch.float64 if pred_BCHW.dtype == torch.float64 else torch.float32
    weights_Bhw = mask_Bhw.detach().to(dtype)
    area = (height // mask_Bhw.shape[1]) * (width // mask_Bhw.shape[2])
    total = weights_Bhw.sum() if mass is None else mass.detach().to(dtype)
    weights_Bhw = weights_Bhw / ((total * area + eps) * pred_BCHW.shape[1])
    loss: Tensor = _MaskedPixelLoss.apply(pred_BCHW, target_BCHW.detach(), weights_Bhw, error == "l2")
    return loss


def _cells(x_BCHW: Tensor, like_Bhw: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, C, h, p, w, p)."""
    return x_BCHW.unflatten(3, (like_Bhw.shape[2], -1)).unflatten(2, (like_Bhw.shape[1], -1))


class _MaskedPixelLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred_BCHW: Tensor, target_BCHW: Tensor, weights_Bhw: Tensor, squared: bool) -> Tensor:
        dtype = weights_Bhw.dtype
        loss = torch.zeros((), dtype=dtype, device=pred_BCHW.device)
        step = max(1, (2**18 if pred_BCHW.device.type == "cpu" else 2**25) // max(1, pred_BCHW[0].numel()))
        for start in range(0, pred_BCHW.shape[0], step):
            rows = slice(start, start + step)
            difference = torch.sub(pred_BCHW[rows].to(dtype), target_BCHW[rows].to(dtype))
            size = difference.square_() if squared else difference.abs_()
            loss += (_cells(size, weights_Bhw).sum((1, 3, 5)) * weights_Bhw[rows]).sum()
        ctx.save_for_backward(pred_BCHW, target_BCHW, weights_Bhw)
        ctx.squared = squared
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        pred_BCHW, target_BCHW, weights_Bhw = ctx.saved_tensors
        grad = torch.sub(pred_BCHW.to(weights_Bhw.dtype), target_BCHW.to(weights_Bhw.dtype))
        grad = grad.mul_(2.0) if ctx.squared else grad.sign_()
        cells = _cells(grad, weights_Bhw) * (weights_Bhw * upstream)[:, None, :, None, :, None]
        return cells.reshape(pred_BCHW.shape).to(pred_BCHW.dtype), None, None, None
