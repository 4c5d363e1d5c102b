"""The two terms of a discrete VAE's bound: how likely the pixels are, and how far the codes are from uniform.

Shape suffixes: B images, C channels, H x W pixels, N tokens, K codes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError


def logit_laplace(decoded: Tensor, unit_BCHW: Tensor, margin: float = 0.1) -> Tensor:
    r"""Return the mean negative log-likelihood of pixels under the logit-Laplace (arXiv 2102.12092, App. A.3, Eq. 2).

    f(x | mu, b) = 1 / (2 b x (1 - x)) exp(-|logit x - mu| / b), the density of a Laplace variable after a sigmoid; the
    pixel y in [0, 1] enters as x = (1 - 2 eps) y + eps, which keeps x (1 - x) away from zero.

    Args:
        decoded: mu, then ln b, (B, 2 C, H, W); ln b is kept above -7 (b = 0.001, a fraction of one grey level).
        unit_BCHW: y in [0, 1]; no gradient reaches it.
        margin: eps in (0, 1/2).

    Returns:
        0-d loss, mean over images, channels and pixels; float32, float64 for float64.

    Raises:
        ConfigError: for shapes that do not fit, or a margin outside (0, 1/2).
    """
    if decoded.ndim != 4 or (decoded.shape[0], decoded.shape[1], *decoded.shape[2:]) != (
        unit_BCHW.shape[0],
        2 * unit_BCHW.shape[1],
        *unit_BCHW.shape[2:],
    ):
        raise ConfigError(
            f"logit_laplace: {tuple(decoded.shape)} does not fit pixels {tuple(unit_BCHW.shape)}; it needs two "
            "channels, location and log scale, for each of theirs."
        )
    if not 0 < margin < 0.5:
        raise ConfigError(f"logit_laplace: margin {margin} must lie between 0 and 1/2.")
    with torch.autocast(decoded.device.type, enabled=False):
        dtype = torch.float64 if decoded.dtype == torch.float64 else torch.float32
        mu, log_b = decoded.to(dtype).chunk(2, 1)
        log_b = log_b.clamp_min(-7.0)
        x = unit_BCHW.detach().to(dtype).clamp(0, 1) * (1 - 2 * margin) + margin
        distance = (torch.logit(x) - mu).abs()
        return (math.log(2) + log_b + torch.log(x * (1 - x)) + distance * torch.exp(-log_b)).mean()


def kl_to_uniform(logits_BNK: Tensor) -> Tensor:
    r"""Return the mean over tokens of KL(softmax(l) || uniform) = log K + sum_k p_k log p_k.

    The term of the bound that the prior of DALL-E's first stage leaves (arXiv 2102.12092, Sec. 2.1): 0 for uniform
    codes, log K for certain ones. Neither p nor log p is kept: both passes stream over tokens.

    Args:
        logits_BNK: unnormalised log-probabilities, any leading shape.

    Returns:
        0-d float32 (float64 for float64 logits).
    """
    kl: Tensor = _KLToUniform.apply(logits_BNK)
    return kl


class _KLToUniform(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        rows = logits.reshape(-1, logits.shape[-1])
        parts = []
        for part in rows.split(_rows_at_once(rows)):
            log_p = torch.log_softmax(part, -1, dtype=dtype)
            parts.append(torch.linalg.vecdot(log_p.exp(), log_p))
        negative_entropy = torch.cat(parts)
        ctx.save_for_backward(logits, negative_entropy)
        return negative_entropy.mean() + math.log(logits.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        logits, negative_entropy = ctx.saved_tensors
        rows = logits.reshape(-1, logits.shape[-1])
        grad = torch.empty_like(rows)
        step = _rows_at_once(rows)
        scale = upstream / len(rows)
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            log_p = torch.log_softmax(rows[some], -1, dtype=negative_entropy.dtype)
            # d/dl_k sum_j p_j log p_j = p_k (log p_k - sum_j p_j log p_j)
            grad[some] = (log_p - negative_entropy[some, None]).mul_(log_p.exp()).mul_(scale)
        return grad.view_as(logits)


def _rows_at_once(rows: Tensor) -> int:
    return max(1, (2**20 if rows.device.type == "cpu" else 2**26) // max(1, rows.shape[-1]))
