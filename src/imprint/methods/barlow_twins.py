"""Barlow Twins: self-supervised learning via redundancy reduction.

Zbontar, Jing, Misra, LeCun, Deny 2021, arXiv 2103.03230. The cross-correlation matrix between the projections of two
views is pulled to the identity: each dimension agrees with itself under distortion and with no other dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import byol_views
from imprint.data.views import View
from imprint.losses.barlow_twins import barlow_twins
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.nn.peers import peers
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsConfig(MethodConfig):
    """Barlow Twins' choices.

    Attributes:
        lambd: weight of the off-diagonal terms (Eq. 1; Sec. 2.2 found 5.1e-3).
        projector: widths of the projector's three layers (Sec. 2.2); wider keeps helping (Fig. 4).
        eps: added to the variance in the loss's BatchNorm (public code, torch's default).
        bias_lr: rate of biases and norms as a share of the weights' (Sec. 2.2: 0.024).
        crop_scale: bounds of the crop's area share (Sec. 2.2, BYOL's views).
        colour: factor on the colour jitter.
        blur: factor on the blur probabilities 1 and .1 (0 for images of 32 pixels).
        solarise: probability in the second view (Sec. 2.2).
    """

    lambd: float = 0.0051
    projector: tuple[int, ...] = (8192, 8192, 8192)
    eps: float = 1e-5
    bias_lr: float = 0.024
    crop_scale: tuple[float, float] = (0.08, 1.0)
    colour: float = 1.0
    blur: float = 1.0
    solarise: float = 0.2


class BarlowTwins(Method):
    """Encoder, projector, cross-correlation (Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = BarlowTwinsConfig

    def __init__(self, cfg: BarlowTwinsConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.branch = Branch(encoder, ProjectionMLP((encoder.embed_dim, *cfg.projector), bias=False))

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """BYOL's two views of different looks (Sec. 2.2)."""
        assert isinstance(cfg, BarlowTwinsConfig)
        return byol_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur, solarise=cfg.solarise)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Pull the cross-correlation of the two views to the identity (Eq. 1 and 2), over all processes' rows.

        Views pass through the network one after the other, each with batch statistics of its own (public code).
        """
        z1_BD, z2_BD = (self.branch(view[None])[0] for view in batch.views["global"])
        terms = barlow_twins(z1_BD, z2_BD, self.cfg.lambd, eps=self.cfg.eps, peers=peers())
        metrics = agreement(z1_BD.detach(), z2_BD.detach())
        metrics["barlow_twins/on_diagonal"] = terms.on_diagonal
        metrics["barlow_twins/off_diagonal"] = terms.off_diagonal
        return StepOutput(terms.loss, metrics)

    def param_groups(self) -> list[ParamGroup]:
        """Biases and norms learn at a rate of their own, without decay or adaptation (public code)."""
        groups = split_decay(self.named_parameters())
        for group in groups:
            if not group.decay:
                group.lr_scale = self.cfg.bias_lr
        return groups

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Lambda 0 leaves nothing against redundant dimensions."""
        assert isinstance(cfg, BarlowTwinsConfig)
        if cfg.lambd > 0:
            return ()
        return (
            "lambd is 0: nothing keeps the dimensions of the embedding apart, so they become copies of each other "
            "(arXiv 2103.03230, Sec. 2.1 and 4); set --method.lambd 0.0051",
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder; the projector is thrown away (Sec. 2.2)."""
        return self.branch.backbone
