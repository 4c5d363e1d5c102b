"""SimCLR: a simple framework for contrastive learning of visual representations.

Chen, Kornblith, Norouzi, Hinton 2020, arXiv 2002.05709. Two views of every image attract each other and repel all
other views of the batch; the representation is taken before the projection head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import simclr_views
from imprint.data.views import View
from imprint.dist.collectives import gather_with_grad
from imprint.losses.contrastive import nt_xent
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(MethodConfig):
    """SimCLR's choices.

    Attributes:
        temperature: tau of NT-Xent (Eq. 1); 0.1 for ImageNet (Sec. 5.1), 0.5 for CIFAR-10 (App. B.9).
        hidden: width of the head's hidden layer; None takes the encoder's (the public code).
        projection: width of z (Sec. 4.2).
        crop_scale: bounds of the crop's area share (App. A).
        colour: jitter strength s; 1 for ImageNet (App. A), 0.5 for CIFAR-10 (App. B.9).
        blur: probability of the Gaussian blur; 0 for CIFAR-10 (App. B.9).
    """

    temperature: float = 0.1
    hidden: int | None = None
    projection: int = 128
    crop_scale: tuple[float, float] = (0.08, 1.0)
    colour: float = 1.0
    blur: float = 0.5


class SimCLR(Method):
    """Encoder f, head g, NT-Xent over the 2B projections (Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = SimCLRConfig

    def __init__(self, cfg: SimCLRConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        width = encoder.embed_dim
        # BatchNorm after both layers, the last with a gain but no shift (google-research/simclr, model_util.py).
        head = ProjectionMLP((width, cfg.hidden or width, cfg.projection), last_norm="scale")
        self.branch = Branch(encoder, head)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Two views of one distribution: crop, flip, colour, grey, blur (App. A)."""
        assert isinstance(cfg, SimCLRConfig)
        return simclr_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute NT-Xent: every view is an anchor, its positive is the other view, all the rest are negatives."""
        z1_BD, z2_BD = self.branch(batch.views["global"])
        z1_all, offset = gather_with_grad(z1_BD)
        z2_all, _ = gather_with_grad(z2_BD)
        loss = nt_xent(z1_BD, z2_BD, self.cfg.temperature, z1_all=z1_all, z2_all=z2_all, offset=offset)
        return StepOutput(loss, agreement(z1_BD.detach(), z2_BD.detach()))

    @property
    def encoder(self) -> Encoder:
        """The encoder f; the head is thrown away (Sec. 4.2)."""
        return self.branch.backbone
