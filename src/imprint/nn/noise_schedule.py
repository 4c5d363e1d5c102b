"""The noise schedule of a diffusion model, and the samplers that walk it backwards.

Ho, Jain, Abbeel 2020, arXiv 2006.11239 (DDPM); Nichol, Dhariwal 2021, arXiv 2102.09672 (cosine schedule, learned
variances); Song, Meng, Ermon 2020, arXiv 2010.02502 (DDIM).

Shape suffixes: B images, C channels, H x W pixels, T noise levels, S sampling steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from imprint.core.errors import ConfigError, unknown

Kind = Literal["linear", "cosine"]
Denoiser = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(x_BCHW, level_B) -> the noise in x, and v in [-1, 1] that chooses a variance where it is learned."""


def betas_of(kind: Kind, levels: int) -> Tensor:
    """Return the variances beta_T that each level adds, float64.

    `linear`: from 1e-4 to 0.02 at 1,000 levels (DDPM, Sec. 4), scaled by 1,000 / T as in guided diffusion. `cosine`:
    1 - f(t + 1) / f(t) with f(t) = cos^2((t / T + 0.008) / 1.008 pi / 2), at most 0.999 (arXiv 2102.09672, Eq. 17).

    Raises:
        ConfigError: for an unknown kind, or too few levels.
    """
    if levels < (1 if kind == "cosine" else 21):  # 0.02 * 1,000 / 20 is all of the variance
        raise ConfigError(f"a {kind} noise schedule cannot have {levels} levels; the paper's has 1,000.")
    if kind == "linear":
        return torch.linspace(1e-4, 0.02, levels, dtype=torch.float64) * (1000 / levels)
    if kind != "cosine":
        raise unknown("noise schedule", kind, ("linear", "cosine"))
    at = torch.arange(levels + 1, dtype=torch.float64) / levels
    kept = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1.0 - kept[1:] / kept[:-1]).clamp(max=0.999)


class NoiseSchedule(nn.Module):
    """q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I), a_t = prod_{s <= t} (1 - beta_s) (DDPM, Eq. 4).

    Args:
        kind: see `betas_of`.
        levels: T.
    """

    kept_T: Tensor
    lost_T: Tensor
    posterior_4T: Tensor

    def __init__(self, kind: Kind = "linear", levels: int = 1000) -> None:
        super().__init__()
        self.levels = levels
        kept_T = (1.0 - betas_of(kind, levels)).cumprod(0)
        # Products and differences are taken in float64, on the host: 1 - a_t of the first levels is tiny.
        self._kept: list[float] = kept_T.tolist()
        steps = [self.step_back(level, level - 1) for level in range(levels)]
        for name, table in (
            ("kept_T", kept_T),
            ("lost_T", 1.0 - kept_T),
            ("posterior_4T", torch.tensor(steps, dtype=torch.float64).t()),
        ):
            self.register_buffer(name, table.float().contiguous(), persistent=False)

    def noised(self, clean_BCHW: Tensor, level_B: Tensor, noise_BCHW: Tensor) -> Tensor:
        """Return x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, float32."""
        kept, lost = _as_images(self.kept_T[level_B]), _as_images(self.lost_T[level_B])
        return kept.sqrt() * clean_BCHW.float() + lost.sqrt() * noise_BCHW.float()

    def clean(self, noised_BCHW: Tensor, level_B: Tensor, noise_BCHW: Tensor) -> Tensor:
        """Return x_0 = (x_t - sqrt(1 - a_t) noise) / sqrt(a_t): the inverse of `noised`."""
        kept, lost = _as_images(self.kept_T[level_B]), _as_images(self.lost_T[level_B])
        return (noised_BCHW - lost.sqrt() * noise_BCHW) / kept.sqrt()

    def velocity(self, clean_BCHW: Tensor, level_B: Tensor, noise_BCHW: Tensor) -> Tensor:
        """Return v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans, Ho, arXiv 2202.00512, App. D)."""
        kept, lost = _as_images(self.kept_T[level_B]), _as_images(self.lost_T[level_B])
        return kept.sqrt() * noise_BCHW.float() - lost.sqrt() * clean_BCHW.float()

    def noise_of(self, velocity_BCHW: Tensor, noised_BCHW: Tensor, level_B: Tensor) -> Tensor:
        """Return the noise in x_t by its velocity: sqrt(1 - a_t) x_t + sqrt(a_t) v."""
        kept, lost = _as_images(self.kept_T[level_B]), _as_images(self.lost_T[level_B])
        return lost.sqrt() * noised_BCHW.float() + kept.sqrt() * velocity_BCHW.float()

    def step_back(self, level: int, earlier: int) -> tuple[float, float, float, float]:
        """Return what q(x_s | x_t, x_0) is made of (DDPM, Eqs. 6-7).

        Args:
            level: t.
            earlier: s < t, -1 for the clean image.

        Returns:
            factor of x_0 and of x_t in the mean, the variance, and beta = 1 - a_t / a_s, the variance's upper bound.
        """
        kept, before = self._kept[level], 1.0 if earlier < 0 else self._kept[earlier]
        beta, lost = 1.0 - kept / before, 1.0 - kept
        of_noised = math.sqrt(kept / before) * (1.0 - before) / lost
        return math.sqrt(before) * beta / lost, of_noised, beta * (1.0 - before) / lost, beta

    def posterior(self, level_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `step_back` from each t to t - 1, float32 (B, 1, 1, 1) each.

        The variance of the first level, which is 0, is that of the second, as in guided diffusion: its log is taken.
        """
        of_clean, of_noised, _, beta = self.posterior_4T[:, level_B]
        variance = self.posterior_4T[2, level_B.clamp(min=min(1, self.levels - 1))]
        return _as_images(of_clean), _as_images(of_noised), _as_images(variance), _as_images(beta)

    def spaced(self, steps: int) -> list[int]:
        """Return S levels spread evenly from the last to the first (guided diffusion, space_timesteps).

        Raises:
            ConfigError: for no steps, or more than there are levels.
        """
        if not 1 <= steps <= self.levels:
            raise ConfigError(f"{steps} sampling steps: give 1 to {self.levels}, the number of noise levels.")
        if steps == 1:
            return [self.levels - 1]
        return [round(i * (self.levels - 1) / (steps - 1)) for i in reversed(range(steps))]

    @torch.no_grad()
    def sample(
        self,
        denoiser: Denoiser,
        noise_BCHW: Tensor,
        steps: int,
        *,
        fresh: Callable[[int], Tensor] | None = None,
        clip: float | None = 1.0,
    ) -> Tensor:
        """Turn noise into images.

        Without `fresh` by DDIM's deterministic walk (arXiv 2010.02502, Eq. 12, sigma = 0): the same noise gives the
        same image. With it by DDPM's, whose steps draw from N(posterior mean, variance) over the chosen levels.

        Args:
            denoiser: finds the noise; it is called once a step.
            noise_BCHW: x_T.
            steps: S.
            fresh: noise (B, C, H, W) for a step, counted from 0.
            clip: the found clean image is kept within +-clip, as in guided diffusion; None leaves it.

        Returns:
            float32 x_0.
        """
        levels = self.spaced(steps)
        x = noise_BCHW.float()
        for step, level in enumerate(levels):
            earlier = levels[step + 1] if step + 1 < steps else -1
            kept = self._kept[level]
            noise, chosen = denoiser(x, torch.full((len(x),), level, dtype=torch.int64, device=x.device))
            found = (x - math.sqrt(1.0 - kept) * noise.float()) / math.sqrt(kept)
            if clip is not None:
                found = found.clamp(-clip, clip)
            if earlier < 0:
                return found
            if fresh is None:
                before = self._kept[earlier]
                noise = (x - math.sqrt(kept) * found) / math.sqrt(1.0 - kept)
                x = math.sqrt(before) * found + math.sqrt(1.0 - before) * noise
                continue
            of_clean, of_noised, variance, beta = self.step_back(level, earlier)
            x = of_clean * found + of_noised * x
            if chosen is None:
                x = x + math.sqrt(variance) * fresh(step)
            else:
                log_variance = between(chosen.float(), math.log(variance), math.log(beta))
                x = x + torch.exp(0.5 * log_variance) * fresh(step)
        return x


def between(chosen: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return the log variance that v in [-1, 1] chooses between two bounds (arXiv 2102.09672, Eq. 15)."""
    share = (chosen + 1.0) / 2.0
    return share * high + (1.0 - share) * low


def _as_images(x_B: Tensor) -> Tensor:
    return x_B[:, None, None, None]
