"""Adversarial autoencoder: codes that follow a prior of one's choice.

Makhzani, Shlens, Jaitly, Goodfellow, Frey 2015, arXiv 1511.05644. An autoencoder reconstructs; a discriminator tells
its codes from samples of the prior, and the encoder learns to fool it, until the codes of all images together (the
aggregated posterior) follow the prior. The decoder then makes images from samples of it.

On every batch two phases follow each other: reconstruction, which moves encoder and decoder; regularisation,
which moves the discriminator, then the encoder alone. The paper gives each its own momentum; here the optimizer keeps
one state for the encoder, which both of its objectives move.

Shape suffixes: B images, A images of all processes, C channels, H x W pixels, L dimensions of a code, Q kept codes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.views import Crop, Look, View
from imprint.dist.collectives import all_gather
from imprint.losses.adversarial import discriminator_loss, fooling_loss
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.discriminators import CodeDiscriminator
from imprint.nn.feature_queue import FeatureQueue
from imprint.nn.up_convolutions import CodeDecoder
from imprint.ops.keyed_normals import keyed_normals
from imprint.ops.mmd import mmd_squared
from imprint.ops.plane import dots
from imprint.ops.priors import Prior, check_prior, sample_prior

PLANE = 112
"""Side of the picture of the latent plane, in pixels."""


@dataclass(frozen=True, kw_only=True)
class AAEConfig(MethodConfig):
    """The adversarial autoencoder's choices.

    Attributes:
        latent: dimensions of a code (the paper's MNIST model; its figures of the plane: 2).
        prior: what codes shall follow: `gaussian`, `mixture` of ten Gaussians in the plane, `swiss_roll` (Fig. 2 and
            4), or `uniform`.
        prior_scale: its spread; the deviation of a Gaussian (the same).
        posterior: a code is a function of the image (`deterministic`, which the paper's experiments use), or drawn from
            a `gaussian` that the encoder describes.
        decoder: `mlp` of two hidden layers (the paper), or `convolutions` for images that are more than a pattern.
        width: of the MLP's hidden layers (the paper: 1,000), or of the convolutions' finest map.
        discriminator_width: of its two hidden layers (the paper: 1,000).
        adversarial_weight: factor on the encoder's loss of the regularisation phase; 0 is a plain autoencoder.
        crop_scale: area share of the crop, of the image's aspect (the paper crops nothing).
        flip: probability of a horizontal flip (none in the paper).
        kept_codes: how many of the latest codes the picture of the latent plane shows.
    """

    latent: int = 8
    prior: Prior = "gaussian"
    prior_scale: float = 5.0
    posterior: Literal["deterministic", "gaussian"] = "deterministic"
    decoder: Literal["mlp", "convolutions"] = "mlp"
    width: int = 1000
    discriminator_width: int = 1000
    adversarial_weight: float = 1.0
    crop_scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    kept_codes: int = 2048


class AAE(Method):
    """Reconstruct, tell codes from the prior, fool (Fig. 1)."""

    Config: ClassVar[type[MethodConfig]] = AAEConfig
    objectives: ClassVar[tuple[str, ...]] = ("reconstruction", "discriminator", "generator")

    def __init__(self, cfg: AAEConfig, encoder: Encoder) -> None:
        super().__init__()
        if min(cfg.latent, cfg.kept_codes) < 1 or cfg.prior_scale <= 0:
            raise ConfigError("aae needs latent and kept_codes of at least 1, and a prior_scale above 0.")
        check_prior(cfg.prior, cfg.latent)
        self.cfg = cfg
        self.backbone = encoder
        outputs = cfg.latent * (2 if cfg.posterior == "gaussian" else 1)
        self.code = nn.Linear(encoder.embed_dim, outputs)
        self.decoder = _decoder(cfg, encoder.image_size, encoder.channels)
        self.discriminator = CodeDiscriminator(cfg.latent, cfg.discriminator_width, cfg.prior_scale)
        self.kept = FeatureQueue(1, cfg.kept_codes, cfg.latent)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One crop with the aspect of the image."""
        assert isinstance(cfg, AAEConfig)
        crop = Crop(size=image_size, scale=cfg.crop_scale, ratio=None)
        return (View(name="global", crop=crop, look=Look(flip=cfg.flip)),)

    def encode(self, images_BCHW: Tensor, index_B: Tensor, key: int) -> Tensor:
        """Return codes (B, L), float32: q(z | x), drawn by key and sample when it is a distribution."""
        codes = self.code(self.backbone(images_BCHW).pooled_BD).float()
        if self.cfg.posterior == "deterministic":
            return codes
        mean_BL, log_variance_BL = codes.chunk(2, 1)
        noise_BL = keyed_normals(key, index_B, (self.cfg.latent,))
        return mean_BL + noise_BL * torch.exp(0.5 * log_variance_BL)

    def prior(self, index_B: Tensor, key: int) -> Tensor:
        """Return a sample of the prior for each image, (B, L)."""
        return sample_prior(self.cfg.prior, key, index_B, self.cfg.latent, self.cfg.prior_scale)

    def forward(self, batch: Batch, t: Progress, objective: str = "reconstruction") -> StepOutput:
        """Reconstruct; or tell the prior's samples from codes; or make codes that pass for the prior's."""
        images, index_B = batch.views["global"][0], batch.index_B
        if objective == "reconstruction":
            codes_BL = self.encode(images, index_B, seed_of("aae", objective, t.step))
            decoded = self.decoder(codes_BL)
            return StepOutput(F.mse_loss(decoded.float(), images.float()), {})
        if objective == "discriminator":
            with torch.no_grad():
                codes_BL = self.encode(images, index_B, seed_of("aae", objective, t.step))
            real_B = self.discriminator(self.prior(index_B, seed_of("aae", "prior", t.step)))
            fake_B = self.discriminator(codes_BL)
            right = (real_B > 0).float().mean() + (fake_B < 0).float().mean()
            return StepOutput(discriminator_loss(real_B, fake_B), {"aae/discriminator_right": right.detach() / 2})
        codes_BL = self.encode(images, index_B, seed_of("aae", objective, t.step))
        fooling = fooling_loss(self.discriminator(codes_BL))
        with torch.no_grad():
            self.kept.push_(all_gather(codes_BL)[None, : self.cfg.kept_codes])
            prior_BL = self.prior(index_B, seed_of("aae", "compared", t.step))
            distance = mmd_squared(codes_BL, prior_BL, self.cfg.prior_scale * self.cfg.latent**0.5)
        metrics = {"aae/fooling": fooling.detach(), "aae/mmd": distance}
        return StepOutput(self.cfg.adversarial_weight * fooling, metrics)

    def param_groups(self) -> list[ParamGroup]:
        """The encoder belongs to two objectives, decoder and discriminator to one each."""
        owners: dict[str, str | tuple[str, ...]] = {
            "encoder": ("reconstruction", "generator"),
            "decoder": "reconstruction",
            "discriminator": "discriminator",
        }
        parts = {"backbone": "encoder", "code": "encoder"}
        named: dict[str, list[tuple[str, nn.Parameter]]] = {owner: [] for owner in owners}
        for name, parameter in self.named_parameters():
            first = name.partition(".")[0]
            named[parts.get(first, first)].append((name, parameter))
        return [
            dataclasses.replace(group, objective=owners[owner])
            for owner, pairs in named.items()
            for group in split_decay(pairs, prefix=f"{owner}/")
        ]

    @property
    def encoder(self) -> Encoder:
        """The encoder before its code."""
        return self.backbone

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Without the adversary codes follow no prior."""
        assert isinstance(cfg, AAEConfig)
        if cfg.adversarial_weight <= 0:
            return ("nothing makes codes follow the prior (adversarial_weight is 0); --method.adversarial-weight 1.",)
        return ()

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return image and reconstruction, images made from samples of the prior, and the latent plane."""
        images, index_B = batch.views["global"][0], batch.index_B
        codes_BL = self.encode(images, index_B, seed_of("aae", "shown"))
        numbers_B = torch.arange(len(images), device=images.device)
        return {
            "image": images,
            "reconstruction": self.decoder(codes_BL).to(images.dtype),
            "samples of the prior, decoded": self.decoder(self.prior(numbers_B, seed_of("aae", "shown"))),
            "latent plane": self.plane(codes_BL),
        }

    @torch.no_grad()
    def plane(self, codes_BL: Tensor) -> Tensor:
        """Return pictures (B, C, PLANE, PLANE) of the first two dimensions: samples of the prior grey, the latest codes
        red (dark for images of other than three channels), and one of the given codes black in each.
        """
        numbers_Q = torch.arange(self.cfg.kept_codes, device=codes_BL.device)
        prior_QL = self.prior(numbers_Q, seed_of("aae", "plane"))
        limit = 1.1 * prior_QL[:, :2].abs().amax()
        ink = codes_BL.new_tensor([-3.0, 0.0, 3.0])  # normalised pixels that are surely black, grey and white
        red = ink[[2, 0, 0]] if self.backbone.channels == 3 else ink[:1].expand(self.backbone.channels)
        page_CSS = ink[2].expand(self.backbone.channels, PLANE, PLANE)
        page_CSS = torch.where(dots(_planar(prior_QL), limit, PLANE), ink[1], page_CSS)
        latest = dots(_planar(self.kept.features[0]), limit, PLANE, real_N=numbers_Q < self.kept.filled)
        page_CSS = torch.where(latest, red[:, None, None], page_CSS)
        own = [dots(code_12, limit, PLANE, size=7) for code_12 in _planar(codes_BL).split(1)]  # a few pictures
        return torch.stack([torch.where(here, ink[0], page_CSS) for here in own])


def _planar(codes_NL: Tensor) -> Tensor:
    """Return the first two dimensions; a single one gets a zero beside it."""
    return codes_NL[:, :2] if codes_NL.shape[1] > 1 else F.pad(codes_NL, (0, 1))


def _decoder(cfg: AAEConfig, side: int, channels: int) -> nn.Module:
    if cfg.decoder == "convolutions":
        return CodeDecoder(cfg.latent, side, channels, cfg.width)
    return nn.Sequential(
        nn.Linear(cfg.latent, cfg.width),
        nn.ReLU(),
        nn.Linear(cfg.width, cfg.width),
        nn.ReLU(),
        nn.Linear(cfg.width, channels * side * side),
        nn.Unflatten(1, (channels, side, side)),
    )
