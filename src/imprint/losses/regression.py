"""Predicting one view's embedding from the other's: BYOL's regression and SimSiam's negative cosine.

Shape suffixes: B images, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError


def byol_loss(
    p1_BD: Tensor, p2_BD: Tensor, z1_BD: Tensor, z2_BD: Tensor, *, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    r"""Return BYOL's symmetrised regression of normalised vectors (arXiv 2006.07733, Eqs. 2 and 3).

    l(i) = || p1/||p1|| - z2/||z2|| ||^2 + || p2/||p2|| - z1/||z1|| ||^2 = (2 - 2 cos(p1, z2)) + (2 - 2 cos(p2, z1))

    The sum of both directions is not halved: l is in [0, 8]. Lengths are ||x|| = sqrt(max(sum x^2, 1e-12)), as in the
    public code (google-deepmind/deepmind-research, byol/utils/helpers.py).

    Args:
        p1_BD: online predictions for view 1, any scale.
        p2_BD: online predictions for view 2.
        z1_BD: target projections of view 1; no gradient reaches them.
        z2_BD: target projections of view 2.
        reduction: `mean` over the batch, or `none` for l(i) of every image.

    Returns:
        0-d loss, or (B,); float32 (float64 for float64 inputs).

    Raises:
        ConfigError: for shapes that differ, or an unknown reduction.
    """
    _check("byol_loss", p1_BD, p2_BD, z1_BD, z2_BD)
    if reduction not in ("mean", "none"):
        raise ConfigError(f"byol_loss: reduction must be 'mean' or 'none', got '{reduction}'.")
    cosines_B = cosine(p1_BD, z2_BD.detach(), floor=1e-12) + cosine(p2_BD, z1_BD.detach(), floor=1e-12)
    return 4.0 - 2.0 * (cosines_B.mean() if reduction == "mean" else cosines_B)


def simsiam_loss(p1_BD: Tensor, p2_BD: Tensor, z1_BD: Tensor, z2_BD: Tensor, *, stop_gradient: bool = True) -> Tensor:
    r"""Return SimSiam's symmetrised negative cosine similarity (arXiv 2011.10566, Eqs. 1 to 4), mean over the batch.

    L = -(cos(p1, stopgrad(z2)) + cos(p2, stopgrad(z1))) / 2, in [-1, 1].

    Args:
        p1_BD: predictions from view 1, any scale.
        p2_BD: predictions from view 2.
        z1_BD: projections of view 1.
        z2_BD: projections of view 2.
        stop_gradient: treat z as constants; False lets the gradient through, which collapses (Sec. 4.1, Fig. 2).

    Returns:
        0-d loss, float32 (float64 for float64 inputs).

    Raises:
        ConfigError: for shapes that differ.
    """
    _check("simsiam_loss", p1_BD, p2_BD, z1_BD, z2_BD)
    if stop_gradient:
        z1_BD, z2_BD = z1_BD.detach(), z2_BD.detach()
    return -0.5 * (cosine(p1_BD, z2_BD).mean() + cosine(p2_BD, z1_BD).mean())


def cosine(x_BD: Tensor, y_BD: Tensor, *, floor: float = 1e-16) -> Tensor:
    r"""Return the cosine of every pair of rows, x y / sqrt(max(||x||^2, floor) max(||y||^2, floor)).

    Three reductions forward and one fused pass backward; neither normalised copies nor products are kept. Inputs in
    half precision are computed in float32, also under autocast.

    Args:
        x_BD: rows of any scale.
        y_BD: rows of any scale.
        floor: smallest squared length that is divided by; shorter rows are scaled as if they had it.

    Returns:
        (B,) in [-1, 1], float32 (float64 for float64 inputs); gradient reaches whichever input wants it.
    """
    with torch.autocast(x_BD.device.type, enabled=False):
        result: Tensor = _Cosine.apply(x_BD, y_BD, floor)
    return result


class _Cosine(torch.autograd.Function):
    """c = a b x y with a = max(||x||^2, floor)^-1/2, b likewise; dc/dx = a b y - [||x||^2 > floor] c a^2 x."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, y_BD: Tensor, floor: float) -> Tensor:
        x, y = _wide(x_BD), _wide(y_BD)
        xx_B, yy_B = torch.linalg.vecdot(x, x), torch.linalg.vecdot(y, y)
        a_B, b_B = xx_B.clamp_min(floor).rsqrt_(), yy_B.clamp_min(floor).rsqrt_()
        # Scaled one after the other: a b alone underflows for rows of length 1e20.
        cosine_B = torch.linalg.vecdot(x, y * b_B[:, None]).mul_(a_B)
        ctx.save_for_backward(x_BD, y_BD, a_B, b_B, cosine_B, xx_B > floor, yy_B > floor)
        return cosine_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_B: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_BD, y_BD, a_B, b_B, cosine_B, long_x_B, long_y_B = ctx.saved_tensors
        grads: list[Tensor | None] = []
        sides = ((x_BD, y_BD, a_B, b_B, long_x_B), (y_BD, x_BD, b_B, a_B, long_y_B))
        for wanted, (own, other, scale_B, other_scale_B, long_B) in zip(ctx.needs_input_grad, sides, strict=False):
            if not wanted:
                grads.append(None)
                continue
            towards_B1 = (upstream_B * scale_B * other_scale_B)[:, None]
            along_B1 = (upstream_B * cosine_B * scale_B.square() * long_B)[:, None]
            grads.append(torch.addcmul(_wide(other) * towards_B1, _wide(own), along_B1, value=-1.0).to(own.dtype))
        return grads[0], grads[1], None


def _wide(x_BD: Tensor) -> Tensor:
    return x_BD if x_BD.dtype == torch.float64 else x_BD.float()


def _check(name: str, *parts: Tensor) -> None:
    shapes = [tuple(part.shape) for part in parts]
    if parts[0].ndim != 2 or parts[0].shape[0] == 0 or len(set(shapes)) > 1:
        raise ConfigError(f"{name}: predictions and targets must be equal non-empty (B, D) matrices, got {shapes}.")
