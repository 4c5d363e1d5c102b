"""Label-free measures of a representation: how many dimensions it uses, and how it is spread.

Shape suffixes: N samples, D width, Q augmentations per sample.
All run in float64 unless said otherwise: entropies of small eigenvalues are what they measure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import DataError, unknown

LidarVariant = Literal["paper", "code"]


def singular_values(features_ND: Tensor) -> Tensor:
    """Return the singular values of the un-centred matrix, descending, float64 (min(N, D),)."""
    _matrix(features_ND, 1, "singular_values")
    return torch.linalg.svdvals(features_ND.double())


def rankme(features_ND: Tensor, eps: float = 1e-7) -> Tensor:
    """Return RankMe (arXiv 2210.02885, Eqs. 1-2): exp(-sum p log p), p = s / sum s + eps, s the singular values.

    Args:
        features_ND: un-centred embeddings; the paper uses 25,600 of them.
        eps: added after normalising; the paper's 1e-7 is for float32.

    Returns:
        0-d float64, from about 1 (one direction) to min(N, D).
    """
    return rankme_from(singular_values(features_ND), eps)


def rankme_from(values: Tensor, eps: float = 1e-7) -> Tensor:
    """Return RankMe of given singular values."""
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + eps
    return torch.exp(-(p * p.log()).sum())


def effective_rank(features_ND: Tensor) -> Tensor:
    """Return exp of the entropy of the normalised singular values of the centred features (Roy & Vetterli, 2007).

    Centring makes a constant offset count for nothing, in which it differs from `rankme`. 0-d float64, 1 to min(N, D).
    """
    _matrix(features_ND, 2, "effective_rank")
    return entropy_rank(singular_values(features_ND.double() - features_ND.double().mean(dim=0)))


def entropy_rank(values: Tensor) -> Tensor:
    """Return exp of the entropy of non-negative values scaled to sum to 1."""
    p = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.exp(torch.special.entr(p).sum())


@dataclass(frozen=True)
class Lidar:
    """LiDAR of a representation.

    Attributes:
        value: exp of the entropy, 0-d float64, 1 to D.
        eigenvalues_D: of the whitened between-class scatter, descending.
    """

    value: Tensor
    eigenvalues_D: Tensor


def lidar(features_NQD: Tensor, delta: float = 1e-4, eps: float = 1e-8, variant: LidarVariant = "paper") -> Lidar:
    r"""Return LiDAR (arXiv 2312.04000, Sec. 3): the effective rank of the linear discriminant between samples.

    Sigma = (S_w + delta I)^(-1/2) S_b (S_w + delta I)^(-1/2), lambda its eigenvalues, exp(-sum p log p).
    S_b: covariance of the class means over N - 1; S_w: scatter within classes over N (Q - 1).

    Args:
        features_NQD: N samples, each a class of its Q augmentations; N >= 2, Q >= 2.
        delta: added to the diagonal of S_w.
        eps: guards the logarithm.
        variant: `paper` p = lambda / sum lambda + eps; `code` (lambda + eps) / sum (lambda + eps).

    Raises:
        DataError: for fewer than two samples or two augmentations.
        ConfigError: for an unknown variant.
    """
    if variant not in get_args(LidarVariant):
        raise unknown("LiDAR variant", variant, get_args(LidarVariant))
    if features_NQD.ndim != 3 or min(features_NQD.shape[:2]) < 2:
        raise DataError(f"lidar needs (N >= 2, Q >= 2, D) features, got {tuple(features_NQD.shape)}.")
    x = features_NQD.double()
    count, looks, _ = x.shape
    means_ND = x.mean(dim=1)
    spread_ND = means_ND - means_ND.mean(dim=0)
    rest = (x - means_ND[:, None]).flatten(0, 1)
    between_DD = spread_ND.T @ spread_ND / (count - 1)
    return lidar_from(between_DD, rest.T @ rest / (count * (looks - 1)), delta, eps, variant)


def lidar_from(
    between_DD: Tensor, within_DD: Tensor, delta: float = 1e-4, eps: float = 1e-8, variant: LidarVariant = "paper"
) -> Lidar:
    """Return LiDAR of given scatter between and within samples, float64 (see `lidar`)."""
    within_DD = within_DD + delta * torch.eye(within_DD.shape[0], dtype=within_DD.dtype, device=within_DD.device)
    scales, basis = torch.linalg.eigh(within_DD)
    root_DD = (basis * scales.rsqrt()) @ basis.T
    values_D = torch.linalg.eigvalsh(root_DD @ between_DD @ root_DD).flip(0).clamp_min(0.0)
    if variant == "paper":
        p = values_D / values_D.sum() + eps
    else:
        p = (values_D + eps) / (values_D + eps).sum()
    return Lidar(torch.exp(-(p * p.log()).sum()), values_D)


@dataclass(frozen=True)
class PowerLaw:
    """A power law lambda_n ~ n^(-alpha) fitted to an eigenspectrum.

    Attributes:
        alpha: exponent, least squares in log-log with weights 1 / n (0-d float64).
        alpha_ols: the same without weights.
        r2: share of the variance of log lambda that the weighted fit explains.
        eigenspectrum_D: share of the variance per principal component, descending.
    """

    alpha: Tensor
    alpha_ols: Tensor
    r2: Tensor
    eigenspectrum_D: Tensor


def eigenspectrum(features_ND: Tensor) -> Tensor:
    """Return the share of the variance of each principal component, descending, float64 (min(N, D),)."""
    _matrix(features_ND, 2, "eigenspectrum")
    x = features_ND.double()
    power = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    return power / power.sum()


def alpha_req(features_ND: Tensor, start: int = 10, stop: int = 100) -> PowerLaw:
    """Return the decay of the eigenspectrum (alpha-ReQ, NeurIPS 2022); near 1 goes with good features.

    Args:
        features_ND: embeddings.
        start: first eigenvalue of the fit, counted from 0.
        stop: one past the last; cut at the number of eigenvalues.

    Raises:
        DataError: when fewer than three positive eigenvalues lie in the range.
    """
    return power_law(eigenspectrum(features_ND), start, stop)


def power_law(spectrum_D: Tensor, start: int = 10, stop: int = 100) -> PowerLaw:
    """Return the decay of a given eigenspectrum, descending (see `alpha_req`).

    Raises:
        DataError: when fewer than three positive eigenvalues lie in the range.
    """
    stop = min(stop, spectrum_D.shape[0])
    if stop - start < 3 or start < 0:
        raise DataError(f"alpha_req: {spectrum_D.shape[0]} eigenvalues leave no range of three from {start} to {stop}.")
    ranks = torch.arange(1, spectrum_D.shape[0] + 1, dtype=torch.float64, device=spectrum_D.device)
    logs, values = ranks.log(), spectrum_D.log()
    fit = slice(start, stop)
    alpha, intercept = _line(logs[fit], values[fit], ranks[fit].reciprocal())
    alpha_ols, _ = _line(logs[fit], values[fit], torch.ones_like(ranks[fit]))
    # The public code scores its fit past the fitted range, up to the 500th eigenvalue or all but the last ten.
    size = spectrum_D.shape[0]
    judged = slice(start + 1, 500 if size >= 512 else size - 10)
    residual = (values + alpha * logs - intercept)[judged].square().sum()
    scatter = (values[judged] - values[judged].mean()).square().sum()
    return PowerLaw(alpha, alpha_ols, 1.0 - residual / scatter, spectrum_D)


def _line(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return (-slope, intercept) of the weighted least-squares line."""
    w = weights / weights.sum()
    mean_x, mean_y = (w * x).sum(), (w * y).sum()
    slope = (w * (x - mean_x) * (y - mean_y)).sum() / (w * (x - mean_x).square()).sum()
    return -slope, mean_y - slope * mean_x


def per_dimension_std(features_ND: Tensor, normalise: bool = True) -> Tensor:
    """Return the standard deviation of each dimension (D,), float32, of the L2-normalised features by default.

    Times sqrt(D) it is about 1 for features spread over the sphere and 0 at collapse (arXiv 2011.10566, Fig. 2).
    """
    _matrix(features_ND, 2, "per_dimension_std")
    x = features_ND.float()
    return (F.normalize(x, dim=1) if normalise else x).std(dim=0, correction=0)


def alignment(x_ND: Tensor, y_ND: Tensor, power: float = 2.0) -> Tensor:
    """Return mean ||x - y||^power over positive pairs of normalised features (arXiv 2005.10242, Eq. 4); 0 is best."""
    gap = F.normalize(x_ND.float(), dim=1) - F.normalize(y_ND.float(), dim=1)
    return gap.norm(dim=1).pow(power).mean()


def uniformity(features_ND: Tensor, t: float = 2.0) -> Tensor:
    """Return log mean exp(-t ||x_i - x_j||^2) over pairs i < j of normalised features (arXiv 2005.10242, Eq. 5).

    0 at collapse; the lower the more uniform on the sphere. Streams over tiles: memory grows with N, not N^2.
    """
    _matrix(features_ND, 2, "uniformity")
    x = F.normalize(features_ND.float(), dim=1)
    count, side = x.shape[0], 1024
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, count, side):
        rows = x[start : start + side]
        for first in range(start, count, side):
            tile = torch.mm(rows, x[first : first + side].T).sub_(1.0).mul_(2.0 * t).exp_()
            total += (tile.triu_(1) if first == start else tile).sum(dtype=torch.float64)
    return torch.log(total / (count * (count - 1) / 2)).float()


def _matrix(features_ND: Tensor, least: int, name: str) -> None:
    if features_ND.ndim != 2 or features_ND.shape[0] < least or features_ND.shape[1] == 0:
        raise DataError(f"{name} needs at least {least} rows of features (N, D), got {tuple(features_ND.shape)}.")
