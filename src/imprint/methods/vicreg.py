"""VICReg: variance-invariance-covariance regularization for self-supervised learning.

Bardes, Ponce, LeCun 2021, arXiv 2105.04906. Embeddings of two branches agree, every dimension keeps a spread over the
batch, and no two dimensions tell the same. As each branch is regularised by itself, the two need share neither weights
nor architecture nor kind of input (Sec. 4.1 and 6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import byol_views
from imprint.data.views import View
from imprint.losses.vicreg import vicreg
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.nn.peers import peers
from imprint.ops.spread import agreement

SAME = "same"


@dataclass(frozen=True, kw_only=True)
class VICRegConfig(MethodConfig):
    """VICReg's choices.

    Attributes:
        sim_coeff: weight of the invariance term (Sec. 4.2: 25).
        std_coeff: weight of the variance term (Sec. 4.2: 25).
        cov_coeff: weight of the covariance term (Sec. 4.2: 1).
        gamma: standard deviation that every dimension is held above (Eq. 1).
        eps: added to the variance under the root (Eq. 2).
        expander: widths of the expander's three layers (Sec. 4.2).
        second: encoder of the second branch, which then has its own weights and expander: a timm name, a run folder or
            an exported file, or `same` for the first one's architecture; None shares everything (the paper's main
            setting).
        second_arch: sizes that replace those of `second` (not with `same`).
        second_stem: ResNet stem of `second` (not with `same`).
        second_patch_size: ViT patch side of `second`; None keeps the model's own (not with `same`).
        second_channels: image channels that the second branch sees (two kinds of input), counted from 0; the
            first branch sees the first `encoder.channels` of them. None: both see the same.
        crop_scale: bounds of the crop's area share (App. C.1, BYOL's views).
        colour: factor on the colour jitter (applied to three-channel images only where it mixes colours).
        blur: factor on the blur probabilities 1 and .1 (0 for images of 32 pixels).
        solarise: probability in the second view (App. C.1).
    """

    sim_coeff: float = 25.0
    std_coeff: float = 25.0
    cov_coeff: float = 1.0
    gamma: float = 1.0
    eps: float = 1e-4
    expander: tuple[int, ...] = (8192, 8192, 8192)
    second: str | None = None
    second_arch: Arch = field(default_factory=Arch)
    second_stem: Literal["imagenet", "cifar", "half"] = "imagenet"
    second_patch_size: int | None = None
    second_channels: tuple[int, ...] | None = None
    crop_scale: tuple[float, float] = (0.08, 1.0)
    colour: float = 1.0
    blur: float = 1.0
    solarise: float = 0.2


class VICReg(Method):
    """Two branches of encoder and expander, shared or not, and three terms (Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = VICRegConfig

    def __init__(self, cfg: VICRegConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.branch = Branch(encoder, ProjectionMLP((encoder.embed_dim, *cfg.expander), bias=False))
        self.second: Branch | None = None  # None: both views go through the first
        if cfg.second is not None:
            other = _second_encoder(cfg, encoder)
            self.second = Branch(other, ProjectionMLP((other.embed_dim, *cfg.expander), bias=False))
        elif cfg.second_channels is not None and len(cfg.second_channels) != encoder.channels:
            raise ConfigError(
                f"vicreg: the branches share an encoder of {encoder.channels} channels and the second is to see "
                f"{len(cfg.second_channels)}; give it one of its own with --method.second same, or "
                f"{encoder.channels} channels."
            )

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """BYOL's two views of different looks (App. C.1), one for each branch."""
        assert isinstance(cfg, VICRegConfig)
        return byol_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur, solarise=cfg.solarise)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute 25 s + 25 v + c (Eq. 6) over all processes' rows.

        Views pass through the network one after the other, each with batch statistics of its own (public code).
        """
        cfg = self.cfg
        x_BCHW, y_BCHW = batch.views["global"]
        first = tuple(range(self.branch.backbone.channels))
        z1_BD = self.branch(_seen(x_BCHW, first)[None])[0]
        z2_BD = (self.second or self.branch)(_seen(y_BCHW, cfg.second_channels or first)[None])[0]
        terms = vicreg(
            z1_BD,
            z2_BD,
            sim_coeff=cfg.sim_coeff,
            std_coeff=cfg.std_coeff,
            cov_coeff=cfg.cov_coeff,
            gamma=cfg.gamma,
            eps=cfg.eps,
            peers=peers(),
        )
        metrics = agreement(z1_BD.detach(), z2_BD.detach())
        for name in ("invariance", "variance", "covariance"):
            metrics[f"vicreg/{name}"] = getattr(terms, name)
        metrics["vicreg/std"] = z1_BD.detach().float().std(0).mean()  # of the raw embedding; 1 where the hinge is met
        return StepOutput(terms.loss, metrics)

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Each regulariser prevents one kind of collapse (Sec. 4.1)."""
        assert isinstance(cfg, VICRegConfig)
        found = []
        if cfg.std_coeff == 0:
            found.append(
                "std_coeff is 0: without the variance term VICReg collapses to a constant (arXiv 2105.04906, "
                "Sec. 4.1); set --method.std-coeff 25"
            )
        if cfg.cov_coeff == 0:
            found.append(
                "cov_coeff is 0: without the covariance term the dimensions become copies of each other "
                "(arXiv 2105.04906, Sec. 4.1); set --method.cov-coeff 1"
            )
        return tuple(found)

    @property
    def encoder(self) -> Encoder:
        """The first branch's encoder; a second one of its own stays in the checkpoints, as `second.backbone`."""
        return self.branch.backbone


def _second_encoder(cfg: VICRegConfig, first: Encoder) -> Encoder:
    assert cfg.second is not None
    channels = len(cfg.second_channels) if cfg.second_channels is not None else first.channels
    if cfg.second == SAME:
        return build_encoder(**{**first.config, "channels": channels})
    return build_encoder(
        cfg.second,
        image_size=first.image_size,
        channels=channels,
        patch_size=cfg.second_patch_size,
        stem=cfg.second_stem,
        arch=cfg.second_arch,
    )


def _seen(images_BCHW: Tensor, channels: tuple[int, ...]) -> Tensor:
    """Return the given channels; a run of neighbours is a view of the same memory."""
    found = images_BCHW.shape[1]
    if min(channels) < 0 or max(channels) >= found:
        raise ConfigError(
            f"vicreg: channels {channels} were asked for and the images have {found}; set --method.second-channels and "
            "--encoder.channels to what is there (channels count from 0)."
        )
    first, last = channels[0], channels[-1]
    if channels == tuple(range(first, last + 1)):
        return images_BCHW[:, first : last + 1]
    return images_BCHW[:, list(channels)]
