"""Losses on reconstructed patches.

Shape suffixes: B images, N patches, P values per patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError


def masked_patch_mse(pred_BNP: Tensor, target_BNP: Tensor, mask_BN: Tensor) -> Tensor:
    r"""Return MAE's loss (arXiv 2111.06377, Sec. 3): squared error, mean over a patch, mean over masked patches.

    sum_bn m_bn (1/P) sum_p (y_bnp - x_bnp)^2 / sum_bn m_bn

    Neither the difference nor its square is kept: forward streams over rows, backward fills the gradient.

    Args:
        pred_BNP: predictions y.
        target_BNP: targets x; no gradient reaches them.
        mask_BN: True or 1 where the patch was hidden from the encoder; weights in [0, 1] are taken as such.

    Returns:
        0-d loss, float32 (float64 for float64 predictions); 0 when nothing is masked.

    Raises:
        ConfigError: for shapes that do not fit.
    """
    if pred_BNP.shape != target_BNP.shape or pred_BNP.shape[:2] != mask_BN.shape:
        raise ConfigError(
            f"masked_patch_mse: predictions {tuple(pred_BNP.shape)}, targets {tuple(target_BNP.shape)} and mask "
            f"{tuple(mask_BN.shape)} do not fit as (B, N, P), (B, N, P), (B, N)."
        )
    loss: Tensor = _MaskedPatchMSE.apply(pred_BNP, target_BNP.detach(), mask_BN.detach())
    return loss


class _MaskedPatchMSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred_BNP: Tensor, target_BNP: Tensor, mask_BN: Tensor) -> Tensor:
        dtype = torch.float64 if pred_BNP.dtype == torch.float64 else torch.float32
        weights_BN = mask_BN.to(dtype)
        mass = weights_BN.sum()
        weights_BN = weights_BN / (torch.where(mass == 0, 1.0, mass) * pred_BNP.shape[-1])
        loss = torch.zeros((), dtype=dtype, device=pred_BNP.device)
        step = max(1, (2**18 if pred_BNP.device.type == "cpu" else 2**25) // max(1, pred_BNP[0].numel()))
        for start in range(0, pred_BNP.shape[0], step):
            rows = slice(start, start + step)
            error = torch.sub(pred_BNP[rows].to(dtype), target_BNP[rows].to(dtype))
            loss += (torch.linalg.vecdot(error, error) * weights_BN[rows]).sum()
        ctx.save_for_backward(pred_BNP, target_BNP, weights_BN)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        pred_BNP, target_BNP, weights_BN = ctx.saved_tensors
        grad = torch.sub(pred_BNP.to(weights_BN.dtype), target_BNP.to(weights_BN.dtype))
        grad.mul_((weights_BN * (2.0 * upstream))[..., None])
        return grad.to(pred_BNP.dtype), None, None
