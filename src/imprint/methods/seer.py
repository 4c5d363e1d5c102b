"""SEER: self-supervised pretraining of visual features in the wild.

Goyal, Caron, Lefaudeux, Xu, Wang, Pai, Singh, Liptchinsky, Misra, Joulin, Bojanowski 2021, arXiv 2103.01988. SwAV's
objective on RegNetY networks and random images, each of them seen once: two large crops are assigned online to K
prototypes, balanced over the batch of all processes; every crop predicts the assignments of the other large ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Duration, Progress, Steps
from imprint.data.batch import Batch
from imprint.data.view_recipes import swav_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_max, all_reduce_sum
from imprint.losses.clustering import code_statistics, swapped_prediction
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.nn.prototypes import UnitPrototypes
from imprint.ops.sinkhorn import sinkhorn
from imprint.ops.spread import agreement

GLOBALS = 2
"""Large crops: codes come from these only (Sec. 3.1)."""


@dataclass(frozen=True, kw_only=True)
class SEERConfig(MethodConfig):
    """SEER's choices.

    Attributes:
        hidden: width of both hidden layers of the head, which has no BatchNorm (Sec. 3.1; public code, swav_head with
            dims 10444-8192-8192-256 and use_bn False).
        projection: width of the features z (Sec. 3.1).
        prototypes: K (Sec. 3.1).
        temperature: tau of the prediction (Sec. 3.1).
        epsilon: smoothness of the assignment (Sec. 3.1; the public configuration of the later 10B model has .03).
        sinkhorn_iterations: rounds of balancing (Sec. 3.1); 0 switches it off, an ablation that collapses.
        freeze_prototypes: the prototypes learn nothing for this long (public code, swav_8node_resnet.yaml,
            TEMP_FROZEN_PARAMS_ITER_MAP: 313 iterations).
        global_scale: area share of the two large crops (public code, crop_scales).
        local_crops: number of small crops (Sec. 3.1: 6 crops of resolutions 2 x 160 + 4 x 96).
        local_scale: area share of the small crops (public code, crop_scales).
        local_size: side of the small crops in pixels; None takes the paper's 96 of 160 in proportion.
        colour: jitter strength s of SimCLR's colours (public code, ImgPilColorDistortion).
        blur: probability of the Gaussian blur (public code, ImgPilGaussianBlur; 0 for images of 32 pixels).
    """

    hidden: int = 8192
    projection: int = 256
    prototypes: int = 16_000
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 10
    freeze_prototypes: Duration = Steps(313)
    global_scale: tuple[float, float] = (0.14, 1.0)
    local_crops: int = 4
    local_scale: tuple[float, float] = (0.05, 0.14)
    local_size: int | None = None
    colour: float = 1.0
    blur: float = 0.5


class SEER(Method):
    """Encoder and deep head, unit prototypes, codes by Sinkhorn-Knopp, swapped prediction (Sec. 2.1 and 3.1).

    What makes it SEER is around it: images are streamed once (`data.stream`), activations are computed again in
    backward (`checkpoint_activations`), the optimizer's state is divided (`shard`); see the recipes.
    """

    Config: ClassVar[type[MethodConfig]] = SEERConfig

    def __init__(self, cfg: SEERConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        widths = (encoder.embed_dim, cfg.hidden, cfg.hidden, cfg.projection)
        self.branch = Branch(encoder, ProjectionMLP(widths, norm=False))
        self.prototypes = UnitPrototypes(cfg.projection, cfg.prototypes)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Two large crops and several small ones of one distribution of colours (multi-crop, Sec. 3.1)."""
        assert isinstance(cfg, SEERConfig)
        return swav_views(
            image_size,
            local_size=cfg.local_size or max(8, round(image_size * 96 / 160 / 8) * 8),
            local_crops=cfg.local_crops,
            global_scale=cfg.global_scale,
            local_scale=cfg.local_scale,
            strength=cfg.colour,
            blur=cfg.blur,
        )

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Assign the large crops, then let every crop predict the codes of the others."""
        z_VBD = self.branch(*(batch.views[name] for name in ("global", "local") if name in batch.views))
        z_VBD = F.normalize(z_VBD.float(), dim=-1)
        scores_VBK = self.prototypes(z_VBD)
        codes_WBK = sinkhorn(
            scores_VBK[:GLOBALS].detach(),
            self.cfg.epsilon,
            self.cfg.sinkhorn_iterations,
            reduce=all_reduce_sum,
            reduce_max=all_reduce_max,
        )
        metrics = {f"seer/{name}": value for name, value in code_statistics(codes_WBK).items()}
        loss = swapped_prediction(scores_VBK, codes_WBK, self.cfg.temperature, overwrite=True)
        return StepOutput(loss, metrics | agreement(z_VBD[0].detach(), z_VBD[1].detach()))

    def before_optimizer_step(self, t: Progress) -> None:
        """Freeze the prototypes early on: no gradient at all, so that weight decay skips them too."""
        if t.before(self.cfg.freeze_prototypes):
            self.prototypes.drop_gradient()

    def after_optimizer_step(self, t: Progress) -> None:
        """Put the prototypes back on the sphere."""
        self.prototypes.normalise_()

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Without balanced assignments one prototype may take all images."""
        assert isinstance(cfg, SEERConfig)
        if cfg.sinkhorn_iterations > 0:
            return ()
        return (
            "sinkhorn_iterations is 0: nothing keeps the assignments balanced, and SEER collapses to few prototypes "
            "(arXiv 2006.09882, Sec. 3.1); set --method.sinkhorn-iterations 10",
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder; head and prototypes are thrown away."""
        return self.branch.backbone
