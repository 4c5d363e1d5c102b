"""SwAV: unsupervised learning of visual features by contrasting cluster assignments.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, arXiv 2006.09882. Two large crops are assigned online to K
prototypes, balanced over the batch; every crop, large or small, predicts the assignments of the other large ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Duration, Epochs, Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import swav_views
from imprint.data.views import View
from imprint.dist.collectives import all_reduce_max, all_reduce_sum, gather_with_grad
from imprint.losses.clustering import code_statistics, swapped_prediction
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.feature_queue import FeatureQueue
from imprint.nn.heads import ProjectionMLP
from imprint.nn.prototypes import UnitPrototypes
from imprint.ops.sinkhorn import sinkhorn
from imprint.ops.spread import agreement

GLOBALS = 2
"""Large crops: codes come from these only (Sec. 3.2)."""


@dataclass(frozen=True, kw_only=True)
class SwAVConfig(MethodConfig):
    """SwAV's choices.

    Attributes:
        hidden: width of the head's hidden layer (App. A.1).
        projection: width of the features z (App. A.1).
        prototypes: K (App. A.1).
        temperature: tau of the prediction (Eq. 2, App. A.1).
        epsilon: smoothness of the assignment (Eq. 3, App. A.1).
        sinkhorn_iterations: rounds of balancing (Sec. 3.1, App. A.1); 0 switches it off, an ablation that collapses.
        queue: features of past batches that join the assignment of each large crop, over all processes; 0 for none,
            3,840 at batch 256 (Sec. 4.3).
        queue_from: when the queue starts to fill (public code, --epoch_queue_starts); it is used once full.
        freeze_prototypes: the prototypes learn nothing for this long (App. A.1; public code,
            --freeze_prototypes_niters: 313 steps at batch 4096 and 5,005 at 256, one epoch of ImageNet).
        global_scale: area share of the two large crops (App. A.1).
        local_crops: number of small crops (Sec. 3.2).
        local_scale: area share of the small crops (App. A.1).
        local_size: side of the small crops in pixels; None takes the paper's 96 of 224 in proportion.
        colour: jitter strength s of SimCLR's colours (App. A.1).
        blur: probability of the Gaussian blur (0 for images of 32 pixels).
    """

    hidden: int = 2048
    projection: int = 128
    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    queue: int = 0
    queue_from: Duration = Epochs(15)
    freeze_prototypes: Duration = Epochs(1)
    global_scale: tuple[float, float] = (0.14, 1.0)
    local_crops: int = 6
    local_scale: tuple[float, float] = (0.05, 0.14)
    local_size: int | None = None
    colour: float = 1.0
    blur: float = 0.5


class SwAV(Method):
    """Encoder and head, unit prototypes, codes by Sinkhorn-Knopp, swapped prediction (Algorithm 1)."""

    Config: ClassVar[type[MethodConfig]] = SwAVConfig

    def __init__(self, cfg: SwAVConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.branch = Branch(encoder, ProjectionMLP((encoder.embed_dim, cfg.hidden, cfg.projection)))
        self.prototypes = UnitPrototypes(cfg.projection, cfg.prototypes)
        self.queue = FeatureQueue(GLOBALS, cfg.queue, cfg.projection) if cfg.queue else None

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Two large crops and several small ones of one distribution of colours (multi-crop, Sec. 3.2)."""
        assert isinstance(cfg, SwAVConfig)
        return swav_views(
            image_size,
            local_size=cfg.local_size,
            local_crops=cfg.local_crops,
            global_scale=cfg.global_scale,
            local_scale=cfg.local_scale,
            strength=cfg.colour,
            blur=cfg.blur,
        )

    def check_batch(self, rows: int) -> None:
        """The queue holds at least a batch."""
        if self.queue is not None:
            self.queue.check(rows)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Assign the large crops, then let every crop predict the codes of the others (Eqs. 1 and 6)."""
        z_VBD = self.branch(*(batch.views[name] for name in ("global", "local") if name in batch.views))
        z_VBD = F.normalize(z_VBD.float(), dim=-1)
        scores_VBK = self.prototypes(z_VBD)
        codes_WBK = self.codes(z_VBD[:GLOBALS].detach(), scores_VBK[:GLOBALS].detach(), t)
        metrics = {f"swav/{name}": value for name, value in code_statistics(codes_WBK).items()}
        loss = swapped_prediction(scores_VBK, codes_WBK, self.cfg.temperature, overwrite=True)
        return StepOutput(loss, metrics | agreement(z_VBD[0].detach(), z_VBD[1].detach()))

    @torch.no_grad()
    def codes(self, z_WBD: Tensor, scores_WBK: Tensor, t: Progress) -> Tensor:
        """Return the codes of the large crops, balanced over the batches of all processes and the queue.

        As in the public code each crop has its own queue, the queue of before this batch is used, and only once it is
        full. There every process keeps a queue of its own rows; here all keep the same one, of the rows of all, and
        each brings its share of it to the assignment. The rows are the same, and Sinkhorn does not ask for their order,
        so N processes equal one and a checkpoint needs one queue. (The public code also rounds the length down to whole
        batches; here any length that holds a batch works.)
        """
        rows = scores_WBK.shape[1]
        settings = (self.cfg.epsilon, self.cfg.sinkhorn_iterations)
        if self.queue is None or t.before(self.cfg.queue_from):
            return sinkhorn(scores_WBK, *settings, reduce=all_reduce_sum, reduce_max=all_reduce_max)
        z_AWD, offset = gather_with_grad(z_WBD.transpose(0, 1).contiguous())
        length, total = self.cfg.queue, z_AWD.shape[0]
        share = slice(length * offset // total, length * (offset + rows) // total)
        past = share.stop - share.start
        every_WNK = scores_WBK.new_empty(GLOBALS, past + rows, self.cfg.prototypes)
        every_WNK[:, :past] = self.prototypes(self.queue.features[:, share])
        every_WNK[:, past:] = scores_WBK
        # A queue that is still filling weighs nothing; a branch on it would make the host wait for the device.
        weight_N = torch.ones(past + rows, device=z_WBD.device)
        weight_N[:past] = self.queue.full
        codes_WBK = sinkhorn(
            every_WNK,
            *settings,
            weight_B=weight_N,
            last=rows,
            reduce=all_reduce_sum,
            reduce_max=all_reduce_max,
            overwrite=True,
        )
        if self.training:
            self.queue.push_(z_AWD.transpose(0, 1))
        return codes_WBK

    def before_optimizer_step(self, t: Progress) -> None:
        """Freeze the prototypes early on: no gradient at all, so that weight decay skips them too."""
        if t.before(self.cfg.freeze_prototypes):
            self.prototypes.drop_gradient()

    def after_optimizer_step(self, t: Progress) -> None:
        """Put the prototypes back on the sphere (Algorithm 1; the public code does it before the next forward)."""
        self.prototypes.normalise_()

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Without balanced assignments one prototype may take all images (Sec. 3.1)."""
        assert isinstance(cfg, SwAVConfig)
        if cfg.sinkhorn_iterations > 0:
            return ()
        return (
            "sinkhorn_iterations is 0: nothing keeps the assignments balanced, and SwAV collapses to few prototypes "
            "(arXiv 2006.09882, Sec. 3.1); set --method.sinkhorn-iterations 3",
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder; head and prototypes are thrown away (Sec. 4)."""
        return self.branch.backbone
