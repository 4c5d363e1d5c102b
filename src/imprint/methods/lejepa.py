"""LeJEPA: provable and scalable self-supervised learning without the heuristics.

Balestriero, LeCun 2025, arXiv 2511.08544. The embeddings of all views of an image are drawn to the mean of its global
views, and SIGReg keeps the embeddings of a batch an isotropic Gaussian. No teacher, no stop-gradient, no predictor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.core.rng import seed_of
from imprint.data.batch import Batch
from imprint.data.views import Crop, Look, View
from imprint.dist.collectives import all_reduce_mean
from imprint.dist.world import current
from imprint.losses.sigreg import random_directions, sigreg
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.ops.spread import agreement


@dataclass(frozen=True, kw_only=True)
class LeJEPAConfig(MethodConfig):
    """LeJEPA's choices.

    Attributes:
        lambd: weight of SIGReg, that of the prediction is 1 - lambd (the one trade-off; Sec. 5).
        hidden: width of the projector's two hidden layers (public minimal example).
        projection: width of the embeddings (public minimal example).
        slices: random directions per step (public code: 1024).
        points: points of the quadrature (Sec. 4; public code: 17 on [0, t_max], doubled).
        t_max: where the quadrature ends (public code: 3; the paper's listing: 5).
        global_crops: large views, at least 1 (public code, README: 2).
        global_scale: area share of the large crops (public code, README).
        local_crops: small views (public code, README: 6).
        local_scale: area share of the small crops (public code, README).
        local_size: side of the small crops in pixels, a multiple of the patch size (public code, README: 98 of 224).
        colour: factor on the colour jitter.
        blur: factor on the blur probability (0 for images of 32 pixels).
        solarise: probability of solarisation (public code, README).
    """

    lambd: float = 0.05
    hidden: int = 2048
    projection: int = 128
    slices: int = 1024
    points: int = 17
    t_max: float = 3.0
    global_crops: int = 2
    global_scale: tuple[float, float] = (0.3, 1.0)
    local_crops: int = 6
    local_scale: tuple[float, float] = (0.05, 0.3)
    local_size: int = 98
    colour: float = 1.0
    blur: float = 1.0
    solarise: float = 0.2


class LeJEPA(Method):
    """Encoder, projector, prediction of the global views' mean, SIGReg; gradients flow through everything."""

    Config: ClassVar[type[MethodConfig]] = LeJEPAConfig

    def __init__(self, cfg: LeJEPAConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.branch = Branch(encoder, ProjectionMLP((encoder.embed_dim, cfg.hidden, cfg.hidden, cfg.projection)))

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Large and small crops of one and the same look (public code, README)."""
        assert isinstance(cfg, LeJEPAConfig)
        s = cfg.colour
        look = Look(
            flip=0.5,
            brightness=0.4 * s,
            contrast=0.4 * s,
            saturation=0.2 * s,
            hue=0.1 * s,
            jitter=0.8,
            grey=0.2,
            blur=0.5 * cfg.blur,
            solarise=cfg.solarise,
        )
        large = View(
            name="global", count=cfg.global_crops, crop=Crop(size=image_size, scale=cfg.global_scale), look=look
        )
        if cfg.local_crops == 0:
            return (large,)
        crop = Crop(size=cfg.local_size, scale=cfg.local_scale)
        return (large, View(name="local", count=cfg.local_crops, crop=crop, look=look))

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute (1 - lambda) mean |mu - z_v|^2 / D + lambda SIGReg, mu the mean of the image's global views."""
        z_VBD = self.branch(*(batch.views[name] for name in ("global", "local") if name in batch.views))
        prediction = self.prediction(z_VBD)
        loss = (1 - self.cfg.lambd) * prediction
        metrics = {"lejepa/prediction": prediction.detach()}
        if self.cfg.lambd > 0:
            # The same directions on all processes and in all parts of an accumulated batch, fresh ones every step.
            directions_DS = random_directions(
                self.cfg.projection, self.cfg.slices, seed_of("sigreg", t.step), z_VBD.device
            )
            gaussian = sigreg(
                z_VBD,
                directions_DS,
                points=self.cfg.points,
                t_max=self.cfg.t_max,
                reduce=all_reduce_mean,
                processes=current().size,
            )
            loss = loss + self.cfg.lambd * gaussian
            metrics["lejepa/sigreg"] = gaussian.detach()
        if z_VBD.shape[0] > 1 and z_VBD.shape[1] > 1:
            metrics |= agreement(z_VBD[0].detach(), z_VBD[1].detach())
        return StepOutput(loss, metrics)

    def prediction(self, z_VBD: Tensor) -> Tensor:
        """Return the mean squared distance per dimension of all views to the mean of the image's global views."""
        z_VBD = z_VBD if z_VBD.dtype.itemsize >= 4 else z_VBD.float()
        center_BD = z_VBD[: self.cfg.global_crops].mean(dim=0)
        return (z_VBD - center_BD).square().mean()

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Lambda 0 leaves nothing against collapse."""
        assert isinstance(cfg, LeJEPAConfig)
        if cfg.lambd > 0:
            return ()
        return (
            "lambd is 0: without SIGReg a constant embedding predicts itself best, so the encoder collapses "
            "(arXiv 2511.08544, Sec. 4); set --method.lambd 0.05",
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder; the projector is thrown away."""
        return self.branch.backbone
