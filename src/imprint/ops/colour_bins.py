r"""The colours of Lab as classes: bins of the ab plane, soft targets, class weights and decoding.

Colorful image colorization (arXiv 1603.08511, Sec. 2.1 to 2.3) predicts which bin a pixel's colour falls in.

Shape suffixes: P pixels, Q bins, K nearest bins, G x G cells, M candidates, B images, h x w places of a prediction.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.ops.lab import rgb_to_lab

REACH = 130.0
"""The ab plane is covered to this distance from grey along both axes; sRGB stays within 108."""

NEIGHBOURS = 5
"""A bin is in gamut when it is among this many nearest bins of a colour."""


@dataclass(frozen=True)
class ColourBins:
    """Bins of the ab plane and where to look for the nearest ones.

    Attributes:
        centres_Q2: (a, b) of each bin, float32, ordered by a, then b.
        candidates_GGM: int64, for each cell of the plane (a, then b) the bins that may be among the nearest of a
            colour in it; Q stands for none.
        grid: spacing of the bins in units of ab.
    """

    centres_Q2: Tensor
    candidates_GGM: Tensor
    grid: float


@functools.lru_cache(maxsize=8)
def colour_bins(grid: float = 10.0, nearest: int = NEIGHBOURS) -> ColourBins:
    r"""Return the bins of a grid in the ab plane that sRGB colours need, on the CPU.

    A bin (a, b), both multiples of `grid`, belongs to the gamut when it is among the 5 nearest of some sRGB colour, so
    that its soft encoding would use it; colours are taken at every fourth of the 256 levels of each channel. With a
    grid of 10 these are 313 bins, the paper's number (Sec. 2.1). The paper does not say its rule; nearest bins alone
    would be 261, the 5 nearest of all 2^24 colours 322. Of the 313 of the published table 310 are the same, the other
    three lie at the corners of the gamut.

    Args:
        grid: spacing in units of ab.
        nearest: K, how many nearest bins `soft_encode` will be asked for at most.

    Raises:
        ConfigError: for a grid outside [2, 60], or a K that the bins cannot give.
    """
    if not 2 <= grid <= 60:
        raise ConfigError(f"colour bins: a grid of {grid} units of ab is not between 2 and 60; the paper's is 10.")
    steps = math.ceil(REACH / grid)
    levels = torch.arange(0, 256, 4, dtype=torch.float64) / 255
    offsets = torch.cartesian_prod(torch.arange(-1, 2), torch.arange(-1, 2))
    used = torch.zeros(2 * steps + 1, 2 * steps + 1, dtype=torch.bool)
    for red in levels:  # one plane of the cube at a time; the 5 nearest are among the 9 bins around a colour
        plane = torch.stack([red.expand(64, 64), *torch.meshgrid(levels, levels, indexing="ij")])
        ab_P2 = rgb_to_lab(plane)[1:].flatten(1).T / grid
        around_PM2 = ab_P2.round().long()[:, None] + offsets
        distance_PM = (ab_P2[:, None] - around_PM2).square().sum(2)
        index_PK = distance_PM.topk(NEIGHBOURS, largest=False).indices
        near = around_PM2.gather(1, index_PK[..., None].expand(-1, -1, 2)).flatten(0, 1) + steps
        used[near[:, 0], near[:, 1]] = True
    centres_Q2 = (used.nonzero() - steps).double() * grid
    if not 1 <= nearest <= len(centres_Q2):
        raise ConfigError(f"colour bins: {nearest} nearest of {len(centres_Q2)} bins; take 1 to {len(centres_Q2)}.")
    return ColourBins(centres_Q2.float(), _candidates(centres_Q2, grid, steps, nearest), grid)


def _candidates(centres_Q2: Tensor, grid: float, steps: int, nearest: int) -> Tensor:
    """Return for each cell the bins that can be among the `nearest` of a point in it.

    With r the half diagonal of a cell, c its centre and d the distance of c's K-th nearest bin, the K nearest of any
    point in the cell are within d + r of the point, so within d + 2 r of c.
    """
    axis = torch.arange(-steps, steps + 1, dtype=torch.float64) * grid
    distance_CQ = torch.cdist(torch.cartesian_prod(axis, axis), centres_Q2)
    reach_C1 = distance_CQ.kthvalue(nearest, dim=1, keepdim=True).values + math.sqrt(2) * grid + 1e-6
    sorted_CQ, order_CQ = distance_CQ.sort(dim=1)
    inside_CQ = sorted_CQ <= reach_C1
    most = int(inside_CQ.sum(1).max())
    table_CM = torch.where(inside_CQ, order_CQ, len(centres_Q2))[:, :most]
    return table_CM.unflatten(0, (len(axis), len(axis)))


@torch.no_grad()
def soft_encode(
    ab_P2: Tensor, centres_Q2: Tensor, candidates_GGM: Tensor, *, grid: float, nearest: int = 5, sigma: float = 5.0
) -> tuple[Tensor, Tensor]:
    r"""Return the K nearest bins of each colour and their shares, w_k = exp(-d_k^2 / (2 sigma^2)) / sum (Sec. 2.1).

    The dense (P, Q) targets are never made, and only the bins around a colour are looked at.

    Args:
        ab_P2: colours, floats, within 130 of grey along both axes (all of sRGB is).
        centres_Q2: see `ColourBins`, on the same device.
        candidates_GGM: see `ColourBins`, of at least this K.
        grid: see `ColourBins`.
        nearest: K; the paper says 5, the public code takes 10.
        sigma: of the Gaussian, in units of ab; 5 in both.

    Returns:
        int64 (P, K), the nearest first, and float32 (float64 for float64) (P, K), rows of sum 1.
    """
    dtype = torch.float64 if ab_P2.dtype == torch.float64 else torch.float32
    with torch.autocast(ab_P2.device.type, enabled=False):
        ab_P2 = ab_P2.to(dtype)
        middle = candidates_GGM.shape[0] // 2
        cell_P2 = (ab_P2 / grid).round().long().clamp(-middle, middle) + middle
        index_PM = candidates_GGM[cell_P2[:, 0], cell_P2[:, 1]]
        far = torch.full_like(centres_Q2[:1], math.inf)
        places_PM2 = torch.cat([centres_Q2, far]).to(dtype)[index_PM]
        distance_PM = (ab_P2[:, None] - places_PM2).square().sum(2)
        distance_PK, which_PK = distance_PM.topk(nearest, dim=1, largest=False)
        return index_PM.gather(1, which_PK), torch.softmax(distance_PK / (-2 * sigma**2), dim=1)


def smoothed(share_Q: Tensor, centres_Q2: Tensor, sigma: float = 5.0) -> Tensor:
    r"""Return a distribution over bins after a Gaussian of `sigma` in the ab plane (Sec. 2.2: p becomes p~).

    Each bin's mass is spread over the bins in proportion to exp(-d^2 / (2 sigma^2)); none leaves the gamut.

    Args:
        share_Q: p, non-negative.
        centres_Q2: see `ColourBins`.
        sigma: in units of ab.
    """
    spread_QQ = torch.softmax(torch.cdist(centres_Q2, centres_Q2).square() / (-2 * sigma**2), dim=1)
    return share_Q @ spread_QQ.to(share_Q.dtype)


def rebalancing(share_Q: Tensor, uniform: float = 0.5) -> Tensor:
    r"""Return class weights w ~ ((1 - lambda) p + lambda / Q)^-1 with sum_q p_q w_q = 1 (Eq. 4).

    Args:
        share_Q: p~, non-negative, of any sum.
        uniform: lambda in (0, 1]; 1 weighs all bins equally.

    Raises:
        ConfigError: for lambda outside (0, 1], or a distribution without mass.
    """
    if not 0 < uniform <= 1:
        raise ConfigError(
            f"rebalancing: lambda {uniform} must lie in (0, 1]; without a uniform part the weight of a colour that no "
            "image shows has no bound."
        )
    p_Q = share_Q.double()
    if not bool(p_Q.sum() > 0):
        raise ConfigError("rebalancing: no colours were counted; give images with three channels.")
    p_Q = p_Q / p_Q.sum()
    weight_Q = 1 / ((1 - uniform) * p_Q + uniform / len(p_Q))
    return (weight_Q / (p_Q * weight_Q).sum()).to(share_Q.dtype)


def annealed_mean(logits_BQhw: Tensor, centres_Q2: Tensor, temperature: float = 0.38) -> Tensor:
    r"""Return the colour of each place, the mean of the bins under softmax(log p / T) (Sec. 2.3, Eq. 5).

    T = 1 is the mean, T -> 0 the mode; the paper takes 0.38 as vivid and still coherent.

    Args:
        logits_BQhw: log p up to a constant.
        centres_Q2: see `ColourBins`.
        temperature: T > 0.

    Returns:
        ab, (B, 2, h, w), float32 (float64 for float64).

    Raises:
        ConfigError: for a temperature that is not positive.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"annealed_mean: temperature must be a positive number, got {temperature}.")
    with torch.autocast(logits_BQhw.device.type, enabled=False):
        dtype = torch.float64 if logits_BQhw.dtype == torch.float64 else torch.float32
        p_BQhw = torch.softmax(logits_BQhw.to(dtype) / temperature, dim=1)
        return torch.einsum("bqhw,qc->bchw", p_BQhw, centres_Q2.to(dtype))
