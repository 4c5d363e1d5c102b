"""NNCLR: nearest-neighbour contrastive learning of visual representations.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman 2021, arXiv 2104.14548. SimCLR's positive is replaced by the nearest
neighbour of the other view's embedding among many past embeddings: another image, likely of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import simclr_views
from imprint.data.views import View
from imprint.dist.collectives import all_gather, gather_with_grad
from imprint.losses.info_nce import info_nce
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.nn.queue import KeyQueue
from imprint.ops.neighbours import nearest
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class NNCLRConfig(MethodConfig):
    """NNCLR's choices.

    Attributes:
        temperature: tau of InfoNCE (Sec. 4.1).
        hidden: width of the projector's two hidden layers (Sec. 4.1).
        projection: width d of z and of the prediction (Sec. 4.1).
        predictor_hidden: width of the predictor's hidden layer (Sec. 4.1).
        queue: size of the support set Q (Sec. 4.1), a multiple of the batch.
        crop_scale: bounds of the crop's area share (Sec. 4.1, SimCLR's views).
        colour: jitter strength s (Sec. 4.1, SimCLR's views).
        blur: probability of the Gaussian blur; 0 for images of 32 pixels.
    """

    temperature: float = 0.1
    hidden: int = 2048
    projection: int = 256
    predictor_hidden: int = 4096
    queue: int = 98_304
    crop_scale: tuple[float, float] = (0.08, 1.0)
    colour: float = 1.0
    blur: float = 0.5


class NNCLR(Method):
    """Encoder, 3-layer projector, predictor, and a first-in first-out support set of unit embeddings (Sec. 3.2, 3.3).

    While the support set is young it holds little to choose from: an embedding counts as its own neighbour until a
    stored one has a positive cosine with it, so the first step (empty set) is SimCLR's with a predictor and with the
    projections held constant. Neighbours take no gradient; predictions do, as positives and as negatives.
    """

    Config: ClassVar[type[MethodConfig]] = NNCLRConfig

    def __init__(self, cfg: NNCLRConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        # BatchNorm after every layer of the projector, ReLU after all but the last (Sec. 4.1).
        projector = ProjectionMLP((encoder.embed_dim, cfg.hidden, cfg.hidden, cfg.projection), last_norm="affine")
        self.branch = Branch(encoder, projector)
        self.predictor = ProjectionMLP((cfg.projection, cfg.predictor_hidden, cfg.projection))
        self.support = KeyQueue(cfg.projection, cfg.queue)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Two views of SimCLR's distribution (Sec. 4.1)."""
        assert isinstance(cfg, NNCLRConfig)
        return simclr_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur)

    def check_batch(self, rows: int) -> None:
        """The support set takes whole batches."""
        self.support.check(rows)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute InfoNCE(NN(z1), p2) / 2 + InfoNCE(NN(z2), p1) / 2, then remember z1 (App. A, Algorithm 1)."""
        z1_BD, z2_BD = (self.branch(view[None])[0] for view in batch.views["global"])
        p1_BD, p2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        near1_BD, found1_B = self.neighbours(z1_BD)
        near2_BD, _ = self.neighbours(z2_BD)
        p1_all, offset = gather_with_grad(p1_BD)
        p2_all, _ = gather_with_grad(p2_BD)
        loss = 0.5 * (
            info_nce(near1_BD, p2_BD, self.cfg.temperature, k_all=p2_all, offset=offset)
            + info_nce(near2_BD, p1_BD, self.cfg.temperature, k_all=p1_all, offset=offset)
        )
        if self.training:
            self.support.push_(all_gather(z1_BD))
        metrics = agreement(z1_BD.detach(), z2_BD.detach())
        metrics["nnclr/found"] = found1_B.float().mean()
        metrics["nnclr/neighbour_cosine"] = F.cosine_similarity(near1_BD, z1_BD.detach().float(), dim=1).mean()
        return StepOutput(loss, metrics)

    @torch.no_grad()
    def neighbours(self, z_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest stored embedding of every row (B, D), and whether there was one (B,).

        The set is searched in bounded memory. Rows that were never pushed are zero: where one of them wins, no stored
        embedding has a positive cosine, and the row itself is returned.
        """
        u_BD = F.normalize(z_BD.detach().float(), dim=1)
        similarity_B1, index_B1 = nearest(u_BD, self.support.keys, 1)
        found_B1 = similarity_B1 > 0
        return torch.where(found_B1, self.support.keys[index_B1[:, 0]], u_BD), found_B1[:, 0]

    @property
    def encoder(self) -> Encoder:
        """The encoder; projector and predictor are thrown away."""
        return self.branch.backbone
