"""MoCo v3: an empirical study of training self-supervised vision transformers.

Chen, Xie, He 2021, arXiv 2104.02057. Query and key encoder without a queue: every view's key is contrasted with the
keys of the batch, symmetrically; the query side has a predictor, and a ViT keeps its random patch projection.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.core.schedules import Schedule, cosine
from imprint.data.batch import Batch
from imprint.data.view_recipes import byol_views
from imprint.data.views import View
from imprint.dist.collectives import gather_with_grad
from imprint.losses.info_nce import mocov3_loss
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, one_group
from imprint.nn.branch import Branch
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import ProjectionMLP
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class MoCoV3Config(MethodConfig):
    """MoCo v3's choices; defaults are those for ViTs.

    Attributes:
        temperature: tau (Sec. 5: 0.2 for ViTs; 1 for ResNet-50, public code).
        momentum: m of the key encoder (Sec. 4: 0.99 rising to 1 along a cosine; ResNet-50: 0.996).
        hidden: width of the hidden layers of projector and predictor (Sec. 5: 4096).
        projection: width of query and key (Sec. 5: 256).
        projector_layers: layers of the projector; None takes 3 for ViTs and 2 for CNNs (public code).
        head_norm: BatchNorm in projector and predictor (Table 3: without it 1 point less).
        predictor: the query side's 2-layer MLP (Table 4: without it 1 point less).
        predictor_norm: end the predictor with a BatchNorm; None does so for ViTs and not for CNNs (public code).
        freeze_patch_projection: a ViT's patch projection stays random, weight and bias (Sec. 4.2); CNNs have none.
        decay_all: weight decay on all parameters (public code with AdamW); otherwise on matrices and kernels only (its
            LARS).
        crop_scale: bounds of the crop's area share (public code: 0.08; ResNet-50: 0.2).
        colour: factor on the jitter.
        blur: factor on the blur probabilities 1 and .1; None leaves blur out for images up to 64 pixels.
        solarise: probability of solarising in the second view.
    """

    temperature: float = 0.2
    momentum: Schedule = field(default_factory=lambda: cosine(0.99, 1.0))
    hidden: int = 4096
    projection: int = 256
    projector_layers: int | None = None
    head_norm: bool = True
    predictor: bool = True
    predictor_norm: bool | None = None
    freeze_patch_projection: bool = True
    decay_all: bool = True
    crop_scale: tuple[float, float] = (0.08, 1.0)
    colour: float = 1.0
    blur: float | None = 1.0
    solarise: float = 0.2


class MoCoV3(Method):
    """Query encoder with projector and predictor, key encoder with projector, InfoNCE in the batch (Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = MoCoV3Config

    def __init__(self, cfg: MoCoV3Config, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        vit = encoder.has_tokens
        if vit and cfg.freeze_patch_projection:
            encoder.freeze_patch_projection()
        layers = cfg.projector_layers or (3 if vit else 2)
        widths = (encoder.embed_dim, *[cfg.hidden] * (layers - 1), cfg.projection)
        end = "plain" if cfg.head_norm else "none"
        self.query = Branch(encoder, ProjectionMLP(widths, norm=cfg.head_norm, last_norm=end, bias=False))
        self.key = frozen_copy(self.query)
        self.predictor: nn.Module = nn.Identity()
        if cfg.predictor:
            widths = (cfg.projection, cfg.hidden, cfg.projection)
            normed = vit if cfg.predictor_norm is None else cfg.predictor_norm
            end = "plain" if normed and cfg.head_norm else "none"
            self.predictor = ProjectionMLP(widths, norm=cfg.head_norm, last_norm=end, bias=False)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """BYOL's two views: the first always blurred, the second sometimes solarised (Sec. 5)."""
        assert isinstance(cfg, MoCoV3Config)
        return byol_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur, solarise=cfg.solarise)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Contrast each view's query with the other view's keys (Algorithm 1).

        Each view passes by itself, so BatchNorm sees one view at a time, as in the public code.
        """
        one, two = batch.views["global"].split(1)
        q1_BD, q2_BD = self._query(one), self._query(two)
        with torch.no_grad():
            k1_BD, k2_BD = self.key(one)[0], self.key(two)[0]
            k1_all, offset = gather_with_grad(k1_BD)
            k2_all, _ = gather_with_grad(k2_BD)
        loss = mocov3_loss(
            q1_BD, q2_BD, k1_BD, k2_BD, self.cfg.temperature, k1_all=k1_all, k2_all=k2_all, offset=offset
        )
        metrics = agreement(q1_BD.detach(), k2_BD)
        metrics["moco/loss_no_scale"] = loss.detach() / (2.0 * self.cfg.temperature)
        return StepOutput(loss, metrics)

    def _query(self, view_VBCHW: Tensor) -> Tensor:
        q_BD: Tensor = self.predictor(self.query(view_VBCHW)[0])
        return q_BD

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the key encoder: theta_k <- m theta_k + (1 - m) theta_q.

        The public code does so in the next forward pass, with that step's m and before the keys are encoded: the same
        weights meet the same images. Its update in the very first pass mixes two equal networks and changes nothing.
        """
        ema_update_(self.key, self.query, self.cfg.momentum(t.at(t.step + 1)))

    def param_groups(self) -> list[ParamGroup]:
        """Decay all parameters (AdamW of the public code), or matrices and kernels only (its LARS)."""
        return one_group(self.named_parameters()) if self.cfg.decay_all else super().param_groups()

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Name a key encoder that is too fast, and a trained patch projection."""
        assert isinstance(cfg, MoCoV3Config)
        found = []
        if cfg.momentum.start < 0.9:
            found.append(
                f"momentum starts at {cfg.momentum.start:g}: a key encoder so close to the query encoder loses "
                "accuracy (arXiv 2104.02057, Sec. 5, Table 5); set --method.momentum.start 0.99"
            )
        if not cfg.freeze_patch_projection:
            found.append(
                "freeze_patch_projection is off: a ViT's trained patch projection makes training unstable at large "
                "rates (arXiv 2104.02057, Sec. 4.2); set --method.freeze-patch-projection True"
            )
        return tuple(found)

    @property
    def encoder(self) -> Encoder:
        """The query encoder; a ViT is read at its class token."""
        return self.query.backbone
