"""Maximum mean discrepancy between samples, and permutation tests on it.

Shape suffixes: N, M rows of samples, L dimensions, P permutations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.core.errors import ConfigError


def mmd_squared(x_NL: Tensor, y_ML: Tensor, bandwidth: float | Tensor | None = None) -> Tensor:
    r"""Return the biased estimate of the squared MMD (Gretton et al. 2012, JMLR 13, Eq. 5), 0-d, >= 0.

    mean_nn' k(x_n, x_n') + mean_mm' k(y_m, y_m') - 2 mean_nm k(x_n, y_m),  k(a, b) = exp(-|a - b|^2 / (2 s^2))

    Args:
        x_NL: samples.
        y_ML: samples.
        bandwidth: s; None takes the median distance within the pooled sample.

    Raises:
        ConfigError: for samples of other widths.
    """
    k = _kernel(_pooled(x_NL, y_ML), bandwidth)
    n = len(x_NL)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def same_distribution_test(
    x_NL: Tensor, y_ML: Tensor, permutations: int = 500, generator: torch.Generator | None = None
) -> tuple[float, float]:
    """Return the squared MMD and how likely so large a one is when both samples come from one distribution.

    p = (1 + number of relabelled samples with at least this MMD) / (1 + permutations); all of them in two products.
    """
    k = _kernel(_pooled(x_NL, y_ML), None)
    n, m = len(x_NL), len(y_ML)
    sign = torch.cat([k.new_full((n,), 1 / n), k.new_full((m,), -1 / m)])
    signs_PA = torch.stack([sign, *(sign[order] for order in _orders(n + m, permutations, generator))])
    values_P = ((signs_PA @ k) * signs_PA).sum(1)
    return float(values_P[0]), _p_value(values_P)


def nearer_test(
    near_NL: Tensor,
    far_NL: Tensor,
    target_ML: Tensor,
    permutations: int = 500,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Return by how much the first sample's squared MMD from the target is below the second's, and its p-value.

    The p-value is the share of exchanges between the two samples that give at least this difference: small when the
    first is nearer to the target than chance would have it.

    Raises:
        ConfigError: for samples of other widths, or first and second of other sizes.
    """
    if near_NL.shape != far_NL.shape:
        raise ConfigError(f"nearer_test: {tuple(near_NL.shape)} and {tuple(far_NL.shape)} must be of one size.")
    n = len(near_NL)
    k = _kernel(_pooled(torch.cat([near_NL, far_NL]), target_ML), None)
    within, cross = k[: 2 * n, : 2 * n], k[: 2 * n, 2 * n :].mean(1)
    first = torch.cat([k.new_full((n,), 1 / n), k.new_zeros(n)])
    firsts_PA = torch.stack([first, *(first[order] for order in _orders(2 * n, permutations, generator))])

    def from_target(w_PA: Tensor) -> Tensor:
        return ((w_PA @ within) * w_PA).sum(1) - 2 * w_PA @ cross

    values_P = from_target(1 / n - firsts_PA) - from_target(firsts_PA)
    return float(values_P[0]), _p_value(values_P)


def _pooled(x_NL: Tensor, y_ML: Tensor) -> Tensor:
    if x_NL.ndim != 2 or y_ML.ndim != 2 or x_NL.shape[1] != y_ML.shape[1]:
        raise ConfigError(f"mmd: samples {tuple(x_NL.shape)} and {tuple(y_ML.shape)} do not fit as (N, L), (M, L).")
    x_NL = x_NL.detach()
    pooled = torch.cat([x_NL, y_ML.detach().to(x_NL.dtype)])
    return pooled if pooled.dtype == torch.float64 else pooled.float()


def _kernel(pooled_AL: Tensor, bandwidth: float | Tensor | None) -> Tensor:
    with torch.autocast(pooled_AL.device.type, enabled=False):
        squared = torch.cdist(pooled_AL, pooled_AL).square()
        if bandwidth is None:
            bandwidth = squared.flatten().median().sqrt().clamp_min(1e-12)
        return torch.exp(-squared / (2 * bandwidth**2))


def _orders(size: int, count: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, size, generator=generator).argsort(1)


def _p_value(values_P: Tensor) -> float:
    # Rounding may put the very same value a little below itself.
    reached = values_P[1:] >= values_P[0] - 1e-9
    return float(1 + reached.sum()) / len(values_P)
