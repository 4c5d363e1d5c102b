"""Layers of K prototypes: logits are inner products of unit features with unit rows.

Shape suffixes: B rows, D width, K prototypes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class UnitPrototypes(nn.Module):
    """K free vectors that are put back to length 1 after every optimizer step (SwAV, arXiv 2006.09882, Sec. 3.1).

    scores = z C^T with rows ||c_k|| = 1. The gradient does not see the normalisation. The public code normalises before
    every forward; once at construction and after every optimizer step (`normalise_`, to be called by the method) is the
    same, and the weights that are stored are those that were used.

    Scores are computed in float32 (float64 for float64 features), also under autocast: Sinkhorn divides them by 0.05,
    which turns the rounding of bfloat16 scores into errors of several percent in every code.

    Args:
        width: D.
        count: K.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        # PyTorch's default init of a linear layer without bias, as the public code has it; then rows of length 1.
        self.weight = nn.Parameter(F.normalize(nn.Linear(width, count, bias=False).weight.detach(), dim=-1))

    def forward(self, z_BD: Tensor) -> Tensor:
        """Return scores (..., K) of unit features (..., D): cosines."""
        dtype = torch.float64 if z_BD.dtype == torch.float64 else torch.float32
        with torch.autocast(z_BD.device.type, enabled=False):
            return F.linear(z_BD.to(dtype), self.weight.to(dtype))

    @torch.no_grad()
    def normalise_(self) -> None:
        """Put every row back to length 1, in place."""
        torch.div(
            self.weight, torch.linalg.vector_norm(self.weight, dim=-1, keepdim=True).clamp_min_(1e-12), out=self.weight
        )

    def drop_gradient(self) -> None:
        """Forget the gradient, so that optimizers skip the prototypes, weight decay and momentum included."""
        self.weight.grad = None


class Prototypes(nn.Module):
    """K directions; logits are inner products with the normalised rows, times a gain that is 1 unless trained."""

    def __init__(self, width: int, count: int, *, train_gain: bool = False) -> None:
        super().__init__()
        linear = nn.Linear(
            width, count, bias=False
        )  # PyTorch's default init, as the public code's weight_norm keeps it
        self.direction = nn.Parameter(linear.weight.detach().clone())
        self.trains_gain = train_gain  # a frozen copy, whose gain takes no gradient, still multiplies by it
        self.gain = nn.Parameter(torch.ones(count, 1), requires_grad=train_gain)

    def forward(self, z_BD: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return F.linear(z_BD, self.normalised())

    def normalised(self) -> Tensor:
        """Return the prototypes as they are multiplied (K, D): unit rows times the gain; differentiable."""
        unit_KD: Tensor = _UnitRows.apply(self.direction)
        return unit_KD * self.gain if self.trains_gain else unit_KD


class _UnitRows(torch.autograd.Function):
    """F.normalize over the last dimension; backward makes one tensor of the size instead of four: K D can be large."""

    @staticmethod
    def forward(ctx: Any, x_KD: Tensor) -> Tensor:
        length_K1 = torch.linalg.vector_norm(x_KD, dim=-1, keepdim=True).clamp_min_(1e-12)
        unit_KD = x_KD / length_K1
        ctx.save_for_backward(unit_KD, length_K1)
        return unit_KD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_KD: Tensor) -> Tensor:
        unit_KD, length_K1 = ctx.saved_tensors
        along_K1 = torch.linalg.vecdot(grad_KD, unit_KD).unsqueeze(-1)
        return torch.addcmul(grad_KD, unit_KD, along_K1, value=-1).div_(length_K1)
