"""The discrete VAE of DALL-E: it learns the visual words that BEiT predicts.

Ramesh, Pavlov, Goh, Gray, Voss, Radford, Chen, Sutskever 2021, arXiv 2102.12092 (Sec. 2.1, App. A). An encoder names
one of K codes for every place of a coarse grid, a decoder paints the image from the names. The choice is relaxed to a
softmax with Gumbel noise whose temperature falls, so that gradients pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.core.schedules import Schedule
from imprint.data.batch import Batch
from imprint.data.view_recipes import mae_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_mean
from imprint.losses.dvae import kl_to_uniform, logit_laplace
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.discrete_vae import DiscreteVAE, Likelihood, gumbel_softmax
from imprint.nn.ema import ema_update_, frozen_copy

UPDATES = 3_000_000
"""Length of the paper's training in updates (App. A.2), of which its schedules are shares."""


def _temperature() -> Schedule:
    return Schedule(start=1.0, end=1 / 16, shape="cosine", stretch=150_000 / UPDATES)


def _kl_weight() -> Schedule:
    return Schedule(start=0.0, end=6.6, shape="cosine", stretch=5_000 / UPDATES)


@dataclass(frozen=True, kw_only=True)
class DVAEConfig(MethodConfig):
    """The discrete VAE's choices.

    Attributes:
        vocabulary: number of codes K (Sec. 2.1).
        embedding: width of a code's embedding, the decoder's input (public code, n_init).
        width: width of the decoder at full resolution, doubled with every halving of the sides (public code, n_hid).
        codebook_start: deviation of the codebook's first values; None takes K^-1/2, as the public code's convolution of
            K inputs starts. Codes that start as far apart as features do (1.0) are told apart sooner.
        blocks: residual blocks per group of the decoder (public code).
        likelihood: `laplace` (logit-Laplace, App. A.3), or `l2` or `l1` on normalised pixels.
        margin: eps of the logit-Laplace, which keeps pixels off 0 and 1 (App. A.3).
        temperature: of the relaxation, 1 to 1/16 over the first 150,000 of 3,000,000 updates, half a cosine (App. A.2).
        kl_weight: beta, 0 to 6.6 over the first 5,000 updates (App. A.2); the bound is divided by the number of pixel
            values, so that the mean divergence of a token counts beta / (stride^2 channels), the paper's beta / 192.
        noise: factor on the Gumbel noise; 0 relaxes by the softmax alone (an ablation).
        momentum: of the averaged weights, which are the tokenizer and the encoder afterwards (App. A.2: 0.999).
        crop_scale: area share of the crop (public BEiT code reads codes of crops .08-1).
    """

    vocabulary: int = 8192
    embedding: int = 128
    codebook_start: float | None = None
    width: int = 256
    blocks: int = 2
    likelihood: Likelihood = "laplace"
    margin: float = 0.1
    temperature: Schedule = field(default_factory=_temperature)
    kl_weight: Schedule = field(default_factory=_kl_weight)
    noise: float = 1.0
    momentum: float = 0.999
    crop_scale: tuple[float, float] = (0.08, 1.0)


class DVAE(Method):
    """Evidence lower bound with relaxed codes (Sec. 2.1): likelihood of the pixels, divergence from uniform codes.

    The encoder is any backbone with a map; its stride is the side of a token. `dvae_encoder` is the paper's.
    `tokenizer` names the codes: what later methods take over (`Method.inherit`).
    """

    Config: ClassVar[type[MethodConfig]] = DVAEConfig
    fit_images: ClassVar[int] = 256

    def __init__(self, cfg: DVAEConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.trained = DiscreteVAE(
            encoder,
            cfg.vocabulary,
            embedding=cfg.embedding,
            width=cfg.width,
            blocks=cfg.blocks,
            likelihood=cfg.likelihood,
            margin=cfg.margin,
            start=cfg.codebook_start,
        )
        self.tokenizer = frozen_copy(self.trained)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One random resized crop with a flip."""
        assert isinstance(cfg, DVAEConfig)
        return mae_views(image_size, scale=cfg.crop_scale)

    def fit(self, images_BCHW: Tensor) -> None:
        """Learn which normalised values are black and white: the likelihood is one of pixels in [0, 1]."""
        for vae in (self.trained, self.tokenizer):
            vae.see_range(images_BCHW)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Relax the codes, decode, and weigh the likelihood against the divergence."""
        images, vae = batch.views["global"][0], self.trained
        logits_BNK, grid = vae(images)
        weights_BNK = gumbel_softmax(logits_BNK, self.cfg.temperature(t), self.cfg.noise)
        decoded = vae.decode_soft(weights_BNK, grid)
        misfit = self._misfit(decoded, images)
        kl = kl_to_uniform(logits_BNK)
        loss = misfit + self.cfg.kl_weight(t) / (vae.stride**2 * vae.channels) * kl
        return StepOutput(loss, {"dvae/misfit": misfit.detach(), "dvae/kl": kl.detach(), **self._use(logits_BNK)})

    def _misfit(self, decoded: Tensor, images: Tensor) -> Tensor:
        """Return the negative log-likelihood per pixel value, up to a constant."""
        if self.cfg.likelihood == "laplace":
            return logit_laplace(decoded, self.trained.to_unit(images), self.cfg.margin)
        distance = F.mse_loss if self.cfg.likelihood == "l2" else F.l1_loss
        return distance(decoded.float(), images.float())

    @torch.no_grad()
    def _use(self, logits_BNK: Tensor) -> dict[str, Tensor]:
        """Return the share of codes that the batch names, and the perplexity of their frequencies as a share of K."""
        names = logits_BNK.detach().argmax(-1).flatten()
        counts = torch.zeros(self.cfg.vocabulary, device=names.device)
        counts = all_reduce_mean(counts.index_add_(0, names, torch.ones_like(names, dtype=counts.dtype)))
        p = counts / counts.sum()
        perplexity = torch.exp(-torch.xlogy(p, p).sum())
        return {
            "dvae/codes_used": (counts > 0).float().mean(),
            "dvae/perplexity": perplexity / self.cfg.vocabulary,
        }

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the averaged weights."""
        ema_update_(self.tokenizer, self.trained, self.cfg.momentum)

    @property
    def encoder(self) -> Encoder:
        """The averaged encoder."""
        return self.tokenizer.backbone

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Without the divergence from uniform codes few of them are used."""
        assert isinstance(cfg, DVAEConfig)
        if cfg.kl_weight.start <= 0 and cfg.kl_weight.end <= 0:
            return (
                "nothing asks for the use of many codes (kl_weight is 0), so few may do all the work: raise "
                "--method.kl-weight.end towards 6.6.",
            )
        return ()

    @torch.no_grad()
    def reconstruct(self, batch: Batch, t: Progress) -> dict[str, Tensor]:
        """Return the image, and what the decoder makes of relaxed codes and of hard ones, as BEiT will see them."""
        images, vae = batch.views["global"][0], self.tokenizer
        logits_BNK, grid = vae(images)
        soft_BNK = gumbel_softmax(logits_BNK, self.cfg.temperature(t), self.cfg.noise)
        return {
            "image": images,
            "relaxed codes": vae.image(vae.decode_soft(soft_BNK, grid)),
            "reconstruction": vae.decode(logits_BNK.argmax(-1), grid),
        }
