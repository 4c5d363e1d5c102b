"""Sums over features in one pass and in float64, kept per group: ranks and spread of a million, and their intervals.

Shapes: N samples, D width, G groups of samples, Q augmentations of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import DataError

BLOCK = 16_384
"""Rows that are widened to float64 at a time."""


@dataclass(frozen=True)
class Sums:
    """Sums over some rows, float64.

    Attributes:
        count: number of rows.
        sum_D: of the rows.
        gram_DD: of their outer products, un-centred.
        unit_sum_D: of the rows scaled to length 1.
        unit_square_D: of the squares of those.
    """

    count: int
    sum_D: Tensor
    gram_DD: Tensor
    unit_sum_D: Tensor
    unit_square_D: Tensor

    def singular_values(self) -> Tensor:
        """Return the singular values of the un-centred rows, descending, (min(N, D),).

        As roots of the eigenvalues of the Gram matrix they are exact to about 1e-8 of the largest.
        """
        return _descending(self.gram_DD, self.count).sqrt()

    def centred_powers(self) -> Tensor:
        """Return the squared singular values of the centred rows, descending, (min(N, D),).

        Those below 1e-13 of the largest are rounding and returned as 0.
        """
        return _descending(self.gram_DD - torch.outer(self.sum_D, self.sum_D) / self.count, self.count)

    def std(self) -> Tensor:
        """Return the standard deviation of each dimension of the rows scaled to length 1, (D,)."""
        mean_D = self.unit_sum_D / self.count
        return (self.unit_square_D / self.count - mean_D.square()).clamp_min(0.0).sqrt()


@dataclass(frozen=True)
class Moments:
    """Sums of every group of rows (leading dimension G) and of all."""

    total: Sums
    groups: tuple[Sums, ...]

    def without(self, group: int) -> Sums:
        """Return the sums over all rows but those of one group."""
        t, g = self.total, self.groups[group]
        return Sums(
            t.count - g.count,
            t.sum_D - g.sum_D,
            t.gram_DD - g.gram_DD,
            t.unit_sum_D - g.unit_sum_D,
            t.unit_square_D - g.unit_square_D,
        )

    def jackknife(self, measure: Callable[[Sums], Tensor]) -> tuple[float, float] | None:
        """Return the 95 % interval of a measure (see `jackknife`), or None for fewer than two groups."""
        if len(self.groups) < 2:
            return None
        left = torch.stack([measure(self.without(g)) for g in range(len(self.groups))])
        return jackknife(float(measure(self.total)), left)


def moments(features_ND: Tensor, group_N: Tensor) -> Moments:
    """Accumulate the sums of features in one pass over their rows, in order (they may be memory-mapped).

    Time N D^2; memory G D^2 float64 and a block of rows.

    Args:
        features_ND: any floating type.
        group_N: group of each row, int64 in [0, G).
    """
    count, width = features_ND.shape
    groups = int(group_N.max()) + 1
    sizes = torch.bincount(group_N, minlength=groups).tolist()
    place = features_ND.device
    sums = torch.zeros(groups, 3, width, dtype=torch.float64, device=place)
    grams = torch.zeros(groups, width, width, dtype=torch.float64, device=place)
    for start in range(0, count, BLOCK):
        rows = features_ND[start : start + BLOCK].double()
        unit, own = F.normalize(rows, dim=1), group_N[start : start + BLOCK].to(place)
        for g in range(groups):
            mine = own == g
            x = rows if groups == 1 else rows[mine]
            u = unit if groups == 1 else unit[mine]
            grams[g].addmm_(x.T, x)
            sums[g] += torch.stack([x.sum(0), u.sum(0), u.square().sum(0)])
    parts = tuple(Sums(sizes[g], sums[g, 0], grams[g], sums[g, 1], sums[g, 2]) for g in range(groups))
    whole = sums.sum(0)
    return Moments(Sums(count, whole[0], grams.sum(0), whole[1], whole[2]), parts)


def jackknife(value: float, left_out_G: Tensor) -> tuple[float, float]:
    r"""Return the 95 % interval value ± t_{.975, G-1} sqrt((G-1)/G sum_g (theta_(g) - mean)^2).

    The delete-a-group jackknife (Kott, 2001), theta_(g) the measure without group g of G equal random groups. Drawing
    rows again with replacement instead would repeat rows and so lower every rank.
    """
    groups = left_out_G.numel()
    theta = left_out_G.double()
    half = student_t(groups - 1) * math.sqrt((groups - 1) / groups * float((theta - theta.mean()).square().sum()))
    return value - half, value + half


def student_t(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, to 0.1 % from 5 degrees of freedom (Cornish-Fisher; A&S 26.7.5)."""
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms))


def pair_sums(features_ND: Tensor, group_N: Tensor, t: float = 2.0) -> Tensor:
    """Return sums of exp(-t ||x_i - x_j||^2) of normalised features over the pairs of two groups, (G, G) float64.

    Each pair i < j counts once: in cell (g, h) and (h, g) for groups g != h, in (g, g) inside a group. Time N^2 D,
    memory a tile.
    """
    order = torch.argsort(group_N, stable=True)
    sizes = torch.bincount(group_N).tolist()
    x = F.normalize(features_ND[order.to(features_ND.device)].float(), dim=1)
    parts = torch.split(x, sizes)
    cells = torch.zeros(len(sizes), len(sizes), dtype=torch.float64)
    side = 1024
    for g, one in enumerate(parts):
        for h in range(g, len(parts)):
            for a in range(0, len(one), side):
                for b in range(a if g == h else 0, len(parts[h]), side):
                    tile = torch.mm(one[a : a + side], parts[h][b : b + side].T).sub_(1.0).mul_(2.0 * t).exp_()
                    cells[g, h] += float((tile.triu_(1) if g == h and a == b else tile).sum(dtype=torch.float64))
            cells[h, g] = cells[g, h]
    return cells


def uniformity_of(cells_GG: Tensor, sizes_G: Tensor, without: int | None = None) -> Tensor:
    """Return the uniformity (`ranks.uniformity`) from `pair_sums`, of all groups or without one; 0-d float64."""
    keep = torch.tensor([g for g in range(len(cells_GG)) if g != without])
    cells, count = cells_GG[keep][:, keep], float(sizes_G[keep].sum())
    total = (cells.sum() + cells.diagonal().sum()) / 2
    return torch.log(total / (count * (count - 1) / 2))


@dataclass(frozen=True)
class Scatter:
    """Sums behind LiDAR over some samples, float64: their number, means, and scatter within augmentations."""

    count: int
    looks: int
    mean_sum_D: Tensor
    mean_gram_DD: Tensor
    within_DD: Tensor

    def minus(self, other: Scatter) -> Scatter:
        """Return the sums without those of `other`."""
        return Scatter(
            self.count - other.count,
            self.looks,
            self.mean_sum_D - other.mean_sum_D,
            self.mean_gram_DD - other.mean_gram_DD,
            self.within_DD - other.within_DD,
        )

    def between_and_within(self) -> tuple[Tensor, Tensor]:
        """Return the covariance of the means over N - 1 and the scatter within samples over N (Q - 1)."""
        centred = self.mean_gram_DD - torch.outer(self.mean_sum_D, self.mean_sum_D) / self.count
        return centred / (self.count - 1), self.within_DD / (self.count * (self.looks - 1))


def scatter(features_NQD: Tensor) -> Scatter:
    """Return the sums behind LiDAR of samples with Q >= 2 augmentations each."""
    if features_NQD.ndim != 3 or features_NQD.shape[1] < 2:
        raise DataError(f"lidar needs (N, Q >= 2, D) features, got {tuple(features_NQD.shape)}.")
    count, looks, width = features_NQD.shape
    mean_sum = torch.zeros(width, dtype=torch.float64, device=features_NQD.device)
    mean_gram, within = (mean_sum.new_zeros(width, width) for _ in range(2))
    for x in torch.split(features_NQD, max(1, BLOCK // looks)):
        wide = x.double()
        means = wide.mean(dim=1)
        rest = (wide - means[:, None]).flatten(0, 1)
        mean_sum += means.sum(0)
        mean_gram.addmm_(means.T, means)
        within.addmm_(rest.T, rest)
    return Scatter(count, looks, mean_sum, mean_gram, within)


def _descending(matrix_DD: Tensor, count: int) -> Tensor:
    values = torch.linalg.eigvalsh(matrix_DD).flip(0)[: min(count, matrix_DD.shape[0])]
    return torch.where(values > 1e-13 * values[0].clamp_min(0.0), values, torch.zeros_like(values))
