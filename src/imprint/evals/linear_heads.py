"""Many linear classifiers trained at once by SGD: one matrix product forward, one back, whatever the grid.

Shapes: N rows, B of a minibatch, D width, G grid points, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imprint.ops.products import rows_by_rows


@dataclass(frozen=True)
class Heads:
    """G linear classifiers over standardised features: logits = ((x - mean) * scale) @ weight[:, g] + bias[g].

    Attributes:
        weight_DGC: float32.
        bias_GC: float32.
        mean_D: float32.
        scale_D: float32.
    """

    weight_DGC: Tensor
    bias_GC: Tensor
    mean_D: Tensor
    scale_D: Tensor

    def logits(self, x_BD: Tensor) -> Tensor:
        """Return logits (B, G, C) of raw features."""
        depth, grid, classes = self.weight_DGC.shape
        x = (x_BD.to(self.mean_D) - self.mean_D) * self.scale_D
        return torch.addmm(self.bias_GC.view(-1), x, self.weight_DGC.view(depth, -1)).view(-1, grid, classes)

    def pick(self, g: int) -> Heads:
        """Return the one head `g` (G = 1)."""
        return Heads(
            self.weight_DGC[:, g : g + 1].contiguous(), self.bias_GC[g : g + 1].contiguous(), self.mean_D, self.scale_D
        )


class HeadTrainer:
    """G classifiers under softmax cross-entropy, SGD with momentum and a cosine to 0; all see the same minibatches.

    The gradient is written out: with P the softmax and Y the one-hot labels, dL/dW = (P - Y)^T x / B. Weights start at
    0; the problem is convex, so no draw of weights is needed.

    Args:
        grid: (learning rate, weight decay) of every head; the rate is that of the minibatch at hand.
        classes: C.
        moments: mean and scale (D) of the features, which are standardised by them.
        momentum: of SGD.
        total: steps of the cosine.
        place: where the heads live.
    """

    def __init__(
        self,
        grid: Sequence[tuple[float, float]],
        classes: int,
        moments: tuple[Tensor, Tensor],
        momentum: float,
        total: int,
        place: torch.device,
    ) -> None:
        self.mean_D, self.scale_D = (m.to(place) for m in moments)
        self.classes, self.momentum, self.total, self.done = classes, momentum, total, 0
        shape = (classes, len(grid), len(self.mean_D))
        # Samples vary fastest in logits and dimensions in weights: whatever is done per class, head or sample then
        # runs along whole vectors, however few classes and heads there are.
        self.weight_CGD, self.bias_CG = torch.zeros(shape, device=place), torch.zeros(shape[:2], device=place)
        self.weight_m, self.bias_m = torch.zeros_like(self.weight_CGD), torch.zeros_like(self.bias_CG)
        rate_G, decay_G = torch.tensor(grid, device=place).unbind(1)
        self._rate_CGD = rate_G[:, None].expand(shape).contiguous()
        self._rate_CG = rate_G.expand(shape[:2]).contiguous()
        self._decay_CGD = decay_G[:, None].expand(shape).contiguous() if decay_G.any() else None

    def step(self, x_BD: Tensor, labels_B: Tensor) -> None:
        """Take one step on raw features, float32 on the place of the heads; they are overwritten."""
        classes, grid, depth = self.weight_CGD.shape
        count = len(x_BD)
        x_BD.sub_(self.mean_D).mul_(self.scale_D)
        logits = rows_by_rows(self.weight_CGD.view(-1, depth), x_BD).add_(self.bias_CG.view(-1, 1))
        p_CGB = logits.view(classes, -1).softmax(0).view(classes, grid, count)
        own = labels_B.expand(1, grid, count)
        p_CGB.scatter_add_(0, own, p_CGB.new_full((1, 1, 1), -1.0).expand_as(own))
        gradient = rows_by_rows(p_CGB.view(-1, count), x_BD.T).view_as(self.weight_m)
        self.weight_m.mul_(self.momentum).add_(gradient, alpha=1.0 / count)
        self.bias_m.mul_(self.momentum).add_(p_CGB.sum(2), alpha=1.0 / count)
        if self._decay_CGD is not None:
            self.weight_m.addcmul_(self.weight_CGD, self._decay_CGD)
        cosine = 0.5 * (1.0 + math.cos(math.pi * self.done / self.total))
        self.weight_CGD.addcmul_(self.weight_m, self._rate_CGD, value=-cosine)
        self.bias_CG.addcmul_(self.bias_m, self._rate_CG, value=-cosine)
        self.done += 1

    def heads(self) -> Heads:
        """Return the classifiers as they are."""
        weight = self.weight_CGD.permute(2, 1, 0).contiguous()
        return Heads(weight, self.bias_CG.T.contiguous(), self.mean_D, self.scale_D)

    def state(self) -> dict[str, Any]:
        """Return everything that steps change."""
        return {
            "done": self.done,
            "weight": self.weight_CGD,
            "bias": self.bias_CG,
            "weight_m": self.weight_m,
            "bias_m": self.bias_m,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.done = int(state["done"])
        self.weight_CGD.copy_(state["weight"])
        self.bias_CG.copy_(state["bias"])
        self.weight_m.copy_(state["weight_m"])
        self.bias_m.copy_(state["bias_m"])


def take(features_ND: Tensor, rows_B: Tensor, place: torch.device) -> Tensor:
    """Return a float32 copy of some rows (memory map, GPU) on `place`."""
    return features_ND.index_select(0, rows_B.to(features_ND.device)).to(place, torch.float32)


def moments(features_ND: Tensor, rows_N: Tensor, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Return mean (D) and 1 / sqrt(variance + 1e-6) (D) over some rows, float32, in one pass.

    Mean and squares of each chunk are joined in float64 (Chan, Golub and LeVeque 1979), so that a large mean does not
    swallow a small variance.
    """
    place = features_ND.device
    mean = torch.zeros(features_ND.shape[1], dtype=torch.float64, device=place)
    squares, seen = torch.zeros_like(mean), 0
    for rows in torch.split(rows_N, chunk):
        x = take(features_ND, rows, place)
        own = x.mean(0)
        shift = own.double() - mean
        joined = seen + len(x)
        squares += x.sub_(own).square_().sum(0).double() + shift.square() * (seen * len(x) / joined)
        mean += shift * (len(x) / joined)
        seen = joined
    return mean.float(), (squares / seen + 1e-6).rsqrt().float()


def count_hits(
    heads: Heads, features_ND: Tensor, labels_N: Tensor, rows_N: Tensor, top: int = 1, chunk: int = 8192
) -> tuple[Tensor, Tensor]:
    """Return (hits_GN bool, loss_G): whether the label is among the first `top` classes, and the mean cross-entropy.

    A head whose weights are not finite hits nothing and has an infinite loss.
    """
    hits, loss = [], torch.zeros(heads.weight_DGC.shape[1], device=labels_N.device)
    for rows in torch.split(rows_N, chunk):
        logits = heads.logits(take(features_ND, rows, labels_N.device))
        own = logits.gather(2, labels_N[rows.to(labels_N.device)][:, None, None].expand(-1, logits.shape[1], 1))
        # The rank of the label, ties counted against it: sound for NaN, constant and saturated logits alike.
        above = (logits >= own).sum(2)
        hits.append(((above <= top) & (above > 0)).t())
        loss += (logits.logsumexp(2) - own[..., 0]).sum(0)
    mean = torch.nan_to_num(loss / len(rows_N), nan=math.inf, posinf=math.inf)
    return torch.cat(hits, 1), mean
