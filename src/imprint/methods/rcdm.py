"""RCDM: a representation-conditional diffusion model, which shows what a representation knows.

Bordes, Balestriero, Vincent 2021, arXiv 2112.09164, and facebookresearch/RCDM. A diffusion model learns to paint images
that an encoder, which stays as it is, represents alike: what all samples of one condition share is what the
representation keeps, what differs among them is what it drops. Where paper and code differ the code is followed: the
condition enters group norms by scale and shift together with the noise level (the paper: conditional batch norms).
Condition and target are one crop here, at two sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.views import CenterCrop, Look, View
from imprint.losses.diffusion import noise_mse, variational_term
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, one_group
from imprint.nn.conditional_unet import ConditionalUNet, Conditioning
from imprint.nn.conditioner import Conditioner, find_projector
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.noise_schedule import Kind, NoiseSchedule, between
from imprint.nn.pixel_range import PixelRange
from imprint.ops.keyed import keyed_uniforms
from imprint.ops.keyed_normals import keyed_normals

NO_PROJECTOR = (
    "RCDM shall be conditioned on a projector, which an encoder alone does not have: name the run that it was trained "
    "in by --start RUN (simclr, vicreg, barlow_twins, dino ...), or use --method.condition backbone."
)


@dataclass(frozen=True, kw_only=True)
class RCDMConfig(MethodConfig):
    """RCDM's choices.

    Attributes:
        condition: the representation: `backbone`, the encoder's vector, or `projector`, what the head behind it makes
            of that; the latter needs the run that the encoder was trained in (--start).
        conditioning: `norm`, by scale and shift of the normalisations (public code: use_scale_shift_norm);
            `time`, only added to the embedding of the noise level, which adds to activations.
        size: side of the painted images in pixels, at most that of the encoder's view (public code: 128); None takes
            that of the view.
        width: channels of the U-Net's first level (public code: 256).
        multipliers: width of each level relative to the first (public code for 128 pixels).
        blocks: residual blocks of a level (public code: 2).
        attention: sides of the maps with self-attention (public code: 32, 16 and 8).
        head_width: channels of an attention head (public code: 4 heads; arXiv 2105.05233, Table 2: 64 channels).
        groups: of the group norms (public code: 32).
        dropout: in the residual blocks (public code: 0).
        residual_resampling: change the resolution in residual blocks (public code: resblock_updown).
        patch: the U-Net works on squares of this side as channels (1 in the public code; 2 costs a quarter).
        prediction: the U-Net puts out the `noise` (public code) or the `velocity`, a mixture of noise and image that
            stays well posed at every level and learns sooner (Salimans, Ho 2022, arXiv 2202.00512, App. D).
        schedule: variances of the noise: `linear` (public code) or `cosine`.
        levels: noise levels T (public code: 1,000).
        learned_variance: also predict the variance of a step back, by the variational bound (public code: learn_sigma).
        momentum: of the averaged weights, which are sampled (public code: 0.9999).
        sampler: `ddpm`, whose every step draws, or `ddim`, where the first noise decides (public code has both).
        steps: of the sampler (public code: 100).
        flip: probability of a horizontal flip (public code: 0.5).
    """

    condition: Literal["backbone", "projector"] = "backbone"
    conditioning: Conditioning = "norm"
    size: int | None = 128
    width: int = 256
    multipliers: tuple[int, ...] = (1, 1, 2, 3, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (32, 16, 8)
    head_width: int = 64
    groups: int = 32
    dropout: float = 0.0
    residual_resampling: bool = True
    patch: int = 1
    prediction: Literal["noise", "velocity"] = "noise"
    schedule: Kind = "linear"
    levels: int = 1000
    learned_variance: bool = True
    momentum: float = 0.9999
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    steps: int = 100
    flip: float = 0.5


class RCDM(Method):
    """Frozen encoder, diffusion U-Net that is told its representation.

    The encoder is the one of `--encoder` (any: a run, an exported file, timm:NAME), or, with its projector, that of the
    run named by `--start`; it is exported as it came.
    """

    Config: ClassVar[type[MethodConfig]] = RCDMConfig
    fit_images: ClassVar[int] = 256

    def __init__(self, cfg: RCDMConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.view_size = encoder.image_size
        self.size = self.view_size if cfg.size is None else cfg.size
        if self.size > self.view_size:
            raise ConfigError(
                f"RCDM cannot learn to paint {self.size} pixels from views of {self.view_size}; use --method.size "
                f"{self.view_size} or less, or a larger --image-size."
            )
        self.channels = encoder.channels
        self.schedule = NoiseSchedule(cfg.schedule, cfg.levels)
        self.schedule.spaced(cfg.steps)  # refuses numbers of steps that do not fit
        self.pixels = PixelRange(self.channels)
        self.condition_on(Conditioner(encoder))

    def condition_on(self, conditioner: Conditioner) -> None:
        """Take a source of representations, and make a fresh U-Net that is told them, with its average."""
        cfg = self.cfg
        self.conditioner = conditioner
        self.unet = ConditionalUNet(
            size=self.size,
            channels=self.channels,
            outputs=self.channels * (2 if cfg.learned_variance else 1),
            vector=conditioner.width,
            width=cfg.width,
            multipliers=cfg.multipliers,
            blocks=cfg.blocks,
            attention=cfg.attention,
            head_width=cfg.head_width,
            groups=cfg.groups,
            dropout=cfg.dropout,
            residual_resampling=cfg.residual_resampling,
            conditioning=cfg.conditioning,
            patch=cfg.patch,
        )
        self.average = frozen_copy(self.unet)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """The centre of the image, flipped or not, as large as the encoder wants it."""
        assert isinstance(cfg, RCDMConfig)
        crop = CenterCrop(size=image_size, resize=image_size)
        return (View(name="global", crop=crop, look=Look(flip=cfg.flip)),)

    def inherit(self, previous: Method) -> None:
        """Take over the encoder of another run, and its projector where that is the condition; or go on."""
        if isinstance(previous, RCDM):
            if previous.cfg.condition != self.cfg.condition:
                raise ConfigError(
                    f"the rcdm run to start from was told the {previous.cfg.condition}; use --method.condition "
                    f"{previous.cfg.condition}, or start from the run of the encoder."
                )
            self.condition_on(Conditioner(previous.encoder, previous.conditioner.projector))
            super().inherit(previous)
            return
        encoder = previous.encoder
        if encoder.channels != self.channels:
            raise ConfigError(
                f"the encoder of the run to start from takes {encoder.channels} channels, these images have "
                f"{self.channels}."
            )
        projector = find_projector(previous, encoder) if self.cfg.condition == "projector" else None
        if self.cfg.condition == "projector" and projector is None:
            raise ConfigError(
                f"a {type(previous).__name__} has no projector behind its encoder's vector, so RCDM cannot be "
                "conditioned on it; use --method.condition backbone."
            )
        self.condition_on(Conditioner(encoder, projector))

    def lacks(self) -> str | None:
        """A projector, which only the run of the encoder has."""
        wanted = self.cfg.condition == "projector" and self.conditioner.projector is None
        return NO_PROJECTOR if wanted else None

    def fit(self, images_BCHW: Tensor) -> None:
        """Learn the range of the pixels, which are painted in [-1, 1], and the scale of the representation."""
        self.pixels.see(images_BCHW)
        self.conditioner.learn_scale(images_BCHW)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Find the noise that was added to the images, told what the encoder says of them."""
        images = batch.views["global"][0]
        condition_BD = self.conditioner(images)
        clean = self.target(images)
        # Keyed by the sample, so that the number of processes does not matter.
        level_B, noise = self._draw(batch.index_B, t.step, clean.shape[1:])
        noised = self.schedule.noised(clean, level_B, noise)
        out = self.unet(noised, level_B, condition_BD)
        wanted = noise if self.cfg.prediction == "noise" else self.schedule.velocity(clean, level_B, noise)
        loss = noise_mse(out[:, : self.channels], wanted)
        metrics = {f"rcdm/{self.cfg.prediction}_mse": loss.detach()}
        if self.cfg.learned_variance:
            bound = self._bound(clean, noised, level_B, out)
            loss, metrics = loss + bound, metrics | {"rcdm/bound_bits": bound.detach()}
        return StepOutput(loss, metrics)

    def _draw(self, index_B: Tensor, step: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        share_B = keyed_uniforms(seed_of("rcdm", "level", step), index_B, 1)[:, 0]
        level_B = (share_B * self.schedule.levels).long().clamp(max=self.schedule.levels - 1)
        return level_B, keyed_normals(seed_of("rcdm", "noise", step), index_B, shape)

    def _bound(self, clean: Tensor, noised: Tensor, level_B: Tensor, out: Tensor) -> Tensor:
        """Return the variational term, from which the variances alone learn (arXiv 2102.09672, Sec. 3.1)."""
        of_clean, of_noised, variance, beta = self.schedule.posterior(level_B)
        chosen = out[:, self.channels :].float()
        found = self.schedule.clean(noised, level_B, self._noise(out.detach(), noised, level_B))
        return variational_term(
            clean,
            level_B,
            of_clean * clean + of_noised * noised,
            variance.log().expand_as(clean),
            of_clean * found + of_noised * noised,
            between(chosen, variance.log(), beta.log()),
        )

    def _noise(self, out: Tensor, noised: Tensor, level_B: Tensor) -> Tensor:
        """Return the noise that the U-Net's output says is in `noised`."""
        guess = out[:, : self.channels].float()
        return guess if self.cfg.prediction == "noise" else self.schedule.noise_of(guess, noised, level_B)

    def target(self, images_BCHW: Tensor) -> Tensor:
        """Return what is painted: the images at `size`, in [-1, 1], float32."""
        images_BCHW = images_BCHW.float()
        if images_BCHW.shape[-1] != self.size:
            side = (self.size, self.size)
            images_BCHW = F.interpolate(images_BCHW, side, mode="bilinear", antialias=True, align_corners=False)
        return self.pixels.to_unit(images_BCHW)

    @torch.no_grad()
    def sample(
        self,
        condition_BD: Tensor,
        noise_B: Tensor,
        *,
        steps: int | None = None,
        sampler: Literal["ddpm", "ddim"] | None = None,
    ) -> Tensor:
        """Paint images of representations with the averaged weights.

        Args:
            condition_BD: standardised representations (`conditioner`), or mixtures of them.
            noise_B: int64, the number of the noise of each image. The same number is the same noise under any
                condition, in any batch and in any run of this image size.
            steps: of the sampler; None takes the configuration's.
            sampler: None takes the configuration's.

        Returns:
            normalised float32 images (B, C, size, size).
        """
        shape = (self.channels, self.size, self.size)

        def denoise(x: Tensor, level_B: Tensor) -> tuple[Tensor, Tensor | None]:
            out = self.average(x, level_B, condition_BD)
            return self._noise(out, x, level_B), out[:, self.channels :] if self.cfg.learned_variance else None

        def fresh(step: int) -> Tensor:
            return keyed_normals(seed_of("rcdm", "fresh", step), noise_B, shape)

        unit = self.schedule.sample(
            denoise,
            keyed_normals(seed_of("rcdm", "first"), noise_B, shape),
            self.cfg.steps if steps is None else steps,
            fresh=fresh if (sampler or self.cfg.sampler) == "ddpm" else None,
        )
        return self.pixels.from_unit(unit)

    @torch.no_grad()
    def represent(self, painted_BCHW: Tensor) -> Tensor:
        """Return standardised representations of painted images, shown to the encoder as large as others."""
        side = (self.view_size, self.view_size)
        if painted_BCHW.shape[-2:] != side:
            painted_BCHW = F.interpolate(painted_BCHW, side, mode="bilinear", antialias=True, align_corners=False)
        out: Tensor = self.conditioner(painted_BCHW)
        return out

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the averaged weights."""
        ema_update_(self.average, self.unet, self.cfg.momentum)

    @property
    def encoder(self) -> Encoder:
        """The encoder that is looked into, unchanged."""
        return self.conditioner.encoder

    def param_groups(self) -> list[ParamGroup]:
        """All of the U-Net in one group (public code)."""
        return one_group((f"unet.{name}", parameter) for name, parameter in self.unet.named_parameters())

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return images, three samples of each one's representation, and a walk from the first's to the last's.

        The samples of a row share their noise, so what differs along it is the condition's doing.
        """
        images = batch.views["global"][0]
        condition_BD = self.conditioner(images)
        noise_B = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        rows = {f"sample {n + 1}": self.sample(condition_BD, noise_B + n) for n in range(3)}
        walk_BD = interpolated(condition_BD[0], condition_BD[-1], len(images))
        rows["walk from the first to the last"] = self.sample(walk_BD, noise_B)
        return {"image": self.pixels.from_unit(self.target(images)), **rows}


def interpolated(first_D: Tensor, last_D: Tensor, count: int) -> Tensor:
    """Return `count` representations on the line from one to another, both ends among them."""
    share = torch.linspace(0.0, 1.0, count, device=first_D.device)[:, None]
    return torch.lerp(first_D[None], last_D[None], share)
