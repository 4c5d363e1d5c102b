"""SupCon: supervised contrastive learning.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan 2020, arXiv 2004.11362. All views of all images of
a class attract each other and repel the rest. The classifier is trained afterwards on the frozen encoder, without the
head: `imprint evaluate linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import DataError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import mocov2_views
from imprint.data.views import View
from imprint.dist.collectives import all_gather, gather_with_grad
from imprint.losses.supcon import supcon
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class SupConConfig(MethodConfig):
    """SupCon's choices.

    Attributes:
        temperature: tau (Sec. 4.4: 0.1).
        base_temperature: the loss is scaled by temperature / base_temperature (public code); equal to `temperature`
            gives Eq. 2 of the paper as printed.
        contrast: anchors are `all` views or the first (`one`) of every image (public code, contrast_mode).
        hidden: width of the head's hidden layer; None takes the encoder's (public code).
        projection: width of z (Sec. 3.1).
        crop_scale: bounds of the crop's area share (public code).
        colour: factor on the jitter (0.4, 0.4, 0.4, 0.1) (public code).
        blur: probability of the Gaussian blur (public code: none).
    """

    temperature: float = 0.1
    base_temperature: float = 0.07
    contrast: Literal["all", "one"] = "all"
    hidden: int | None = None
    projection: int = 128
    crop_scale: tuple[float, float] = (0.2, 1.0)
    colour: float = 1.0
    blur: float = 0.0


class SupCon(Method):
    """Encoder, 2-layer head without BatchNorm, L_out over all views of all processes (Sec. 3).

    Views and head are those of HobbitLong/SupContrast; the paper's ImageNet figure used AutoAugment.
    """

    Config: ClassVar[type[MethodConfig]] = SupConConfig
    needs_labels: ClassVar[bool] = True

    def __init__(self, cfg: SupConConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        width = encoder.embed_dim
        self.branch = Branch(encoder, ProjectionMLP((width, cfg.hidden or width, cfg.projection), norm=False))

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Two views of one distribution: crop, flip, jitter, grey (public code)."""
        assert isinstance(cfg, SupConConfig)
        return mocov2_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute L_out (Eq. 2): every view is an anchor, all views of its class are positives.

        Raises:
            DataError: for a batch without labels.
        """
        if batch.labels_B is None:
            raise DataError("supcon learns from labels, and this batch has none: use one folder per class.")
        z_BVD = F.normalize(self.branch(batch.views["global"]).float(), dim=-1).transpose(0, 1)
        z_all, offset = gather_with_grad(z_BVD)
        labels_all = all_gather(batch.labels_B)
        loss = supcon(
            z_BVD,
            batch.labels_B,
            temperature=self.cfg.temperature,
            base_temperature=self.cfg.base_temperature,
            contrast=self.cfg.contrast,
            features_all=z_all,
            labels_all=labels_all,
            offset=offset,
        )
        z_BVD = z_BVD.detach()
        metrics = agreement(z_BVD[:, 0], z_BVD[:, 1])
        return StepOutput(loss, metrics | {"supcon/only_of_its_class": _only_of_its_class(labels_all)})

    @property
    def encoder(self) -> Encoder:
        """The encoder; the head is thrown away before the classifier is trained (Sec. 3.1)."""
        return self.branch.backbone


def _only_of_its_class(labels_A: Tensor) -> Tensor:
    """Return the share of images that are the only one of their class in the batch: their positive is themselves."""
    ordered = labels_A.sort().values
    ends = torch.ones_like(ordered[:1], dtype=torch.bool)
    differs = torch.cat([ends, ordered[1:] != ordered[:-1], ends])
    return (differs[1:] & differs[:-1]).float().mean()
