"""SIGReg: how far embeddings are from an isotropic Gaussian, along random directions (LeJEPA, arXiv 2511.08544).

Shape suffixes: V views, B images of this process, D width, S directions (slices), T points of the quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError

Reduce = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def sigreg(
    z_VBD: Tensor,
    directions_DS: Tensor,
    *,
    points: int = 17,
    t_max: float = 3.0,
    reduce: Reduce = _same,
    processes: int = 1,
) -> Tensor:
    r"""Return the mean over views and directions of the Epps-Pulley statistic against N(0, 1).

    For the N samples x_n = z_n . a of one view along one direction (arXiv 2511.08544, Sec. 4):

        N int |1/N sum_n exp(i t x_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,

    by the trapezoidal rule on `points` points of [0, t_max], doubled for the other half (the public code; the paper's
    listing spans [-5, 5] by 17 points). Samples of N(0, 1) give about sqrt(2 pi) (1 - 1 / sqrt(3)) = 1.06 at any N;
    a point mass at 0 gives 0.40 N.

    The points are multiples of one step, so exp(i t x) comes by multiplication from one sine and cosine per sample and
    direction, where the definition takes 2 T of them. Some directions are worked on at a time and the projections made
    twice, so memory is O(V B D + D S), and nothing of size B S T or even B S is kept. The gradient is found with the
    value and handed over once. Over several processes only the empirical characteristic functions, V x S x T numbers,
    are exchanged, once and forwards only: from their mean each process knows the exact gradient of its own samples.

    Args:
        z_VBD: embeddings; float32 and lower are computed in float32.
        directions_DS: unit vectors, the same on all processes (`random_directions`).
        points: T >= 2.
        t_max: where the quadrature ends, > 0.
        reduce: mean of a tensor over processes, without gradient; all bring the same B.
        processes: how many there are: N = B * processes.

    Returns:
        0-d, float32 (float64 for float64 embeddings), the value over all processes. The gradient is that of the value
        times `processes`, so that averaging over processes (DDP) gives that of the whole.

    Raises:
        ConfigError: for shapes that do not fit, no samples, or an impossible quadrature.
    """
    if z_VBD.ndim != 3 or directions_DS.ndim != 2 or z_VBD.shape[2] != directions_DS.shape[0] or 0 in z_VBD.shape:
        raise ConfigError(
            f"sigreg: embeddings {tuple(z_VBD.shape)} and directions {tuple(directions_DS.shape)} do not fit as "
            "(V, B, D), (D, S) with at least one view and image."
        )
    if points < 2 or not 0 < t_max < math.inf:
        raise ConfigError(f"sigreg: {points} points up to {t_max} are no quadrature; use two or more up to t_max > 0.")
    with torch.autocast(z_VBD.device.type, enabled=False):
        value: Tensor = _SIGReg.apply(z_VBD, directions_DS.detach(), points, t_max, reduce, processes)
    return value


@torch.no_grad()
def random_directions(width: int, count: int, seed: int, device: torch.device) -> Tensor:
    """Return `count` directions uniform on the sphere, float32 (width, count), a function of the seed (and device)."""
    generator = torch.Generator(device).manual_seed(seed)
    a_DS = torch.randn(width, count, generator=generator, device=device)
    return a_DS.div_(torch.linalg.vector_norm(a_DS, dim=0))


class _SIGReg(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z_VBD: Tensor, a_DS: Tensor, points: int, t_max: float, reduce: Reduce, processes: int
    ) -> Tensor:
        dtype = torch.float64 if z_VBD.dtype == torch.float64 else torch.float32
        z, a = z_VBD.to(dtype), a_DS.to(dtype)
        views, batch, _ = z.shape
        slices = a.shape[1]
        step = t_max / (points - 1)
        t_T1 = torch.arange(points, dtype=dtype, device=z.device).mul_(step).unsqueeze(1)
        normal_T1 = torch.exp(-0.5 * t_T1.square())
        weight_T1 = normal_T1 * (2.0 * step)
        weight_T1[0] *= 0.5
        weight_T1[-1] *= 0.5
        chunks = list(_chunks(views, batch, slices, z.device))

        means_VTS = z.new_empty(views, points, slices, dtype=dtype.to_complex())
        means_VTS[:, 0] = 1.0
        for v, at in chunks:
            turn = _turns(z[v], a[:, at], step)
            power = turn.clone()
            for k in range(1, points):
                torch.mean(power, dim=0, out=means_VTS[v, k, at])
                if k + 1 < points:
                    power.mul_(turn)
        means_VTS = torch.view_as_complex(reduce(torch.view_as_real(means_VTS)))

        off_VTS = means_VTS - normal_T1
        scale = batch * processes / (views * slices)
        value = (torch.view_as_real(off_VTS).square().sum(dim=-1) * weight_T1).sum() * scale
        if not ctx.needs_input_grad[0]:
            ctx.grad = None
            return value
        # d value / d x_n = sum_k c_k . (-sin, cos)(k step x_n) with c_k = 2 scale w_k t_k / B * off_k, the real part of
        # conj(c_k) i exp(i k step x_n): a polynomial in exp(i step x_n).
        coefficients = off_VTS.conj() * (weight_T1 * t_T1 * (2.0 * scale / batch)) * 1j
        grad = torch.zeros_like(z)
        for v, at in chunks:
            turn = _turns(z[v], a[:, at], step)
            horner = turn * coefficients[v, points - 1, at]
            for k in range(points - 2, 0, -1):
                horner.add_(coefficients[v, k, at]).mul_(turn)
            grad[v].addmm_(horner.real, a[:, at].T)
        ctx.grad = grad.to(z_VBD.dtype)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grad is None:
            raise RuntimeError("sigreg keeps its gradient and hands it over once; run the forward again.")
        grad, ctx.grad = ctx.grad, None
        return grad.mul_(upstream), None, None, None, None, None


def _turns(z_BD: Tensor, a_Ds: Tensor, step: float) -> Tensor:
    """Return exp(i step z . a), complex (B, s)."""
    angle_Bs = (z_BD @ a_Ds).mul_(step)
    return torch.complex(torch.cos(angle_Bs), torch.sin(angle_Bs))


def _chunks(views: int, batch: int, slices: int, device: torch.device) -> list[tuple[int, slice]]:
    """Return which directions of which view to work on together: on a CPU 2^15 numbers, 256 KB, stay in its cache."""
    size = 2**15 * torch.get_num_threads() if device.type == "cpu" else 2**24
    step = max(16, size // batch)
    return [(v, slice(s, min(s + step, slices))) for v in range(views) for s in range(0, slices, step)]
