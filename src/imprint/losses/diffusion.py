"""Losses of diffusion models.

Shape suffixes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imprint.core.errors import ConfigError


def noise_mse(pred_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
    r"""Return L_simple = E ||noise - pred||^2 per value (DDPM, arXiv 2006.11239, Eq. 14), 0-d.

    Args:
        pred_BCHW: the network's guess; float16 and bfloat16 are computed in float32.
        noise_BCHW: the noise that was added.

    Raises:
        ConfigError: for shapes that differ.
    """
    if pred_BCHW.shape != noise_BCHW.shape:
        raise ConfigError(f"noise_mse: the guess {tuple(pred_BCHW.shape)} is not of {tuple(noise_BCHW.shape)}.")
    return (_wide(pred_BCHW) - _wide(noise_BCHW)).square().mean()


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Return KL(N(mean1, exp log_variance1) || N(mean2, exp log_variance2)) in nats, value by value."""
    ratio = torch.exp(log_variance1 - log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + ratio + (mean1 - mean2).square() * torch.exp(-log_variance2) - 1.0)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor, bins: int = 256) -> Tensor:
    """Return log P(x) of a Gaussian that is summed up within the bins of a pixel value (DDPM, Eq. 13).

    Args:
        x: values in [-1, 1], the middles of `bins` equal bins whose outer ones reach to infinity.
        mean: of the Gaussian.
        log_variance: of the Gaussian.
        bins: 256 for 8-bit images.
    """
    half = 1.0 / (bins - 1)
    scale = torch.exp(-0.5 * log_variance)
    above = _normal_cdf((x - mean + half) * scale)
    below = _normal_cdf((x - mean - half) * scale)
    inner = above - below
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1.0 - below, inner))
    return mass.clamp(min=1e-12).log()


def variational_term(
    clean_BCHW: Tensor,
    level_B: Tensor,
    true_mean: Tensor,
    true_log_variance: Tensor,
    mean: Tensor,
    log_variance: Tensor,
) -> Tensor:
    r"""Return the term L_t of the variational bound in bits per value, mean over images (arXiv 2102.09672, Eqs. 4-6).

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at levels above the first, -log p(x_0 | x_1) at the first.

    Args:
        clean_BCHW: x_0 in [-1, 1].
        level_B: t, from 0.
        true_mean: of q(x_{t-1} | x_t, x_0).
        true_log_variance: of the same; whatever is finite at the first level.
        mean: the network's; detach it where only variances shall learn from this.
        log_variance: the network's.
    """
    clean_BCHW, mean, log_variance = _wide(clean_BCHW), _wide(mean), _wide(log_variance)
    kl = gaussian_kl(_wide(true_mean), _wide(true_log_variance), mean, log_variance).flatten(1).mean(1)
    surprise = -discretised_log_likelihood(clean_BCHW, mean, log_variance).flatten(1).mean(1)
    return torch.where(level_B == 0, surprise, kl).mean() / math.log(2.0)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-x / math.sqrt(2.0))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
