"""BYOL: bootstrap your own latent.

Grill, Strub, Altche, Tallec, Richemond et al. 2020, arXiv 2006.07733. An online network predicts, from one view, the
projection that a slowly moving average of itself (the target) makes of the other view. There are no negatives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.core.schedules import Schedule, cosine
from imprint.data.batch import Batch
from imprint.data.view_recipes import byol_views
from imprint.data.views import View
from imprint.losses.regression import byol_loss
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import ProjectionMLP
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(MethodConfig):
    """BYOL's choices.

    Attributes:
        hidden: width of the hidden layer of projector and predictor (Sec. 3.3).
        projection: width of z and of the prediction (Sec. 3.3).
        momentum: tau of the target, 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2 (Sec. 3.3; parity case `schedules`).
        predictor: put a predictor behind the online projector; without it the network collapses (Sec. 5, Table 5b).
        crop_scale: bounds of the crop's area share (App. B).
        colour: factor on the colour jitter (App. B, Table 6).
        blur: factor on the blur probabilities 1 and 0.1 (App. B, Table 6); 0 for images of 32 pixels.
        solarise: probability of solarisation in the second view (App. B, Table 6).
    """

    hidden: int = 4096
    projection: int = 256
    momentum: Schedule = field(default_factory=lambda: cosine(0.996, 1.0))
    predictor: bool = True
    crop_scale: tuple[float, float] = (0.08, 1.0)
    colour: float = 1.0
    blur: float = 1.0
    solarise: float = 0.2


class BYOL(Method):
    """Online encoder, projector and predictor; target encoder and projector (Sec. 3.1, Fig. 2, Algorithm 1).

    As in the public code (google-deepmind/deepmind-research, byol): each view goes through the networks by itself, so
    BatchNorm's statistics are those of one view; the heads have BatchNorm after the hidden layer only and no bias at
    the output; the target runs in train mode with batch statistics of its own.
    """

    Config: ClassVar[type[MethodConfig]] = BYOLConfig

    def __init__(self, cfg: BYOLConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        projector = ProjectionMLP((encoder.embed_dim, cfg.hidden, cfg.projection), bias=False)
        self.online = Branch(encoder, projector)
        self.target = frozen_copy(self.online)
        self.predictor: nn.Module = (
            ProjectionMLP((cfg.projection, cfg.hidden, cfg.projection), bias=False) if cfg.predictor else nn.Identity()
        )

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One view of each of the two distributions T and T' (App. B, Table 6)."""
        assert isinstance(cfg, BYOLConfig)
        return byol_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur, solarise=cfg.solarise)

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Name a missing predictor and a target that is the online network itself (Sec. 5, Table 5)."""
        assert isinstance(cfg, BYOLConfig)
        found = []
        if not cfg.predictor:
            found.append(
                "predictor is off: without it BYOL collapses to a constant (arXiv 2006.07733, Sec. 5, Table 5b); set "
                "--method.predictor True"
            )
        if cfg.momentum.start <= 0:
            found.append(
                "momentum starts at 0: the target is the online network itself, which destabilises BYOL "
                "(arXiv 2006.07733, Sec. 5, Table 5a); set --method.momentum.start 0.99"
            )
        return tuple(found)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Predict each view's target projection from the other view (Eqs. 2 and 3); the target takes no gradient."""
        views_VBCHW = batch.views["global"]
        z1_BD, z2_BD = (self.online(view[None])[0] for view in views_VBCHW)
        with torch.no_grad():
            target1_BD, target2_BD = (self.target(view[None])[0] for view in views_VBCHW)
        p1_BD, p2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        loss = byol_loss(p1_BD, p2_BD, target1_BD, target2_BD)
        return StepOutput(loss, agreement(z1_BD.detach(), z2_BD.detach()))

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the target: xi <- tau xi + (1 - tau) theta (Eq. 1); parameters only, buffers stay its own."""
        ema_update_(self.target, self.online, self.cfg.momentum(t))

    @property
    def encoder(self) -> Encoder:
        """The online encoder; everything else is thrown away (Sec. 3.1)."""
        return self.online.backbone
