"""Cholesky whitening of sub-batches, all views, iterations and sub-batches at once.

Shape suffixes: V views, B rows, D width, I iterations, G sub-batches of S rows (B = G S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imprint.core.errors import ConfigError, HealthError


def whiten(h_VBD: Tensor, perms_IB: Tensor, *, size: int, eps: float = 0.0) -> Tensor:
    r"""Return W-MSE's whitened embeddings (arXiv 2007.06346, Eq. 4; batch slicing of Sec. 3).

    Every sub-batch of every view is centred and multiplied by the inverse of its covariance's lower Cholesky factor:
    z = L^-1 (h - mean),  L L' = (1 - eps) cov + eps I,  cov unbiased.

    Arithmetic is float64 inside wherever the device has it, also under autocast: factors of nearly dependent dimensions
    need the digits, and the matrices are small. Gradients run through the whitening.

    Args:
        h_VBD: embeddings, row b of every view is of the same image.
        perms_IB: int64, one permutation of the rows per iteration, shared by the views.
        size: rows S of a sub-batch; divides B and exceeds D (a covariance of fewer rows has no inverse).
        eps: shrinkage towards the identity, in [0, 1).

    Returns:
        (V, I, G, S, D) float32 (float64 for float64 inputs); row s of sub-batch g in iteration i is image
        `perms_IB[i, g S + s]`.

    Raises:
        ConfigError: for sizes that do not fit together.
        HealthError: when a covariance has no Cholesky factor. On a GPU, where asking would wait for the device, the
            sub-batch becomes NaN instead, which the trainer's finite check meets.
    """
    views, rows, width = h_VBD.shape
    check_sizes(rows, width, size, eps)
    if perms_IB.ndim != 2 or perms_IB.shape[1] != rows:
        raise ConfigError(f"whiten: permutations must be (I, {rows}), got {tuple(perms_IB.shape)}.")
    with torch.autocast(h_VBD.device.type, enabled=False):
        precise = h_VBD.float() if h_VBD.device.type == "mps" else h_VBD.double()
        parts = precise[:, perms_IB.flatten()].view(views, perms_IB.shape[0], rows // size, size, width)
        centred = parts - parts.mean(-2, keepdim=True)
        cov = centred.mT @ centred * ((1.0 - eps) / (size - 1))
        if eps:
            cov = cov + eps * torch.eye(width, dtype=cov.dtype, device=cov.device)
        factor, info = torch.linalg.cholesky_ex(cov)
        if info.device.type == "cpu":
            if bool(info.any()):
                raise HealthError(_failed(width, size, eps))
        else:
            factor = torch.where(info[..., None, None] > 0, math.nan, factor)
        whitened: Tensor = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
        return whitened if h_VBD.dtype == torch.float64 else whitened.float()


def check_sizes(rows: int, width: int, size: int, eps: float) -> None:
    """Refuse sub-batches that cannot be whitened.

    Raises:
        ConfigError: when `size` does not divide `rows`, does not exceed `width` (unless `eps` > 0), or `eps` is no
            share.
    """
    if not 0.0 <= eps < 1.0:
        raise ConfigError(f"whitening: eps must lie in [0, 1), got {eps}.")
    if size <= width and eps == 0.0:
        raise ConfigError(
            f"whitening: sub-batches of {size} rows cannot be whitened in {width} dimensions; choose w_size > "
            f"{width} (the paper takes twice the width, {2 * width}), a narrower projection, or w_eps > 0."
        )
    if size < 2 or rows % size:
        raise ConfigError(
            f"whitening: a batch of {rows} does not split into sub-batches of {size}; use a batch size that is a "
            f"multiple of w_size ({max(1, round(rows / max(1, size))) * max(2, size)}), or another w_size."
        )


def _failed(width: int, size: int, eps: float) -> str:
    return (
        f"whitening: the covariance of a sub-batch ({size} rows, {width} dimensions, eps {eps:g}) has no Cholesky "
        "factor: dimensions are constant or copies of each other. Give --method.w-eps a small value (1e-3), a larger "
        "--method.w-size, or a lower learning rate."
    )
