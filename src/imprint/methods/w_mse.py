"""W-MSE: whitening for self-supervised representation learning.

Ermolov, Siarohin, Sangineto, Sebe 2020, arXiv 2007.06346. Positives attract each other after a whitening of the batch,
which scatters the embeddings over a sphere: no negatives, no second network, and no constant solution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import key, uniforms
from imprint.data.batch import Batch
from imprint.data.view_recipes import mocov2_views
from imprint.data.views import Crop, View
from imprint.dist.collectives import gather_with_grad
from imprint.losses.w_mse import positive_distance
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput
from imprint.nn.branch import Branch
from imprint.nn.heads import ProjectionMLP
from imprint.ops.spread import agreement
from imprint.ops.whitening import check_sizes, whiten


@dataclass(frozen=True, kw_only=True)
class WMSEConfig(MethodConfig):
    """W-MSE's choices.

    Attributes:
        num_views: d positives of every image (Sec. 3: 2 or 4).
        hidden: width of the head's hidden layer (Sec. 4.1).
        projection: width of the embedding (Sec. 4.1: 64 for CIFAR, 128 for STL-10 and Tiny ImageNet).
        w_size: rows of a sub-batch (Sec. 4.1: twice the embedding's width).
        w_iter: random partitions of the batch per step (public code: 1; 4 for d = 2 on STL-10 and Tiny ImageNet).
        w_eps: shrinkage of the covariance towards the identity (public code: 0).
        norm: distances between rows of length 1 (Eq. 6, the default); False takes plain squared differences.
        whiten: False leaves the whitening out (an ablation: then nothing prevents a constant).
        crop_scale: bounds of the crop's area share (Sec. 4.1).
        colour: factor on the colour jitter (.4, .4, .4, .1) (Sec. 4.1).
        grey: probability of a grey view (Sec. 4.1).
    """

    num_views: int = 2
    hidden: int = 1024
    projection: int = 64
    w_size: int = 128
    w_iter: int = 1
    w_eps: float = 0.0
    norm: bool = True
    whiten: bool = True
    crop_scale: tuple[float, float] = (0.2, 1.0)
    colour: float = 1.0
    grey: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be whitened before anything is built."""
        if self.num_views < 2 or self.w_iter < 1:
            raise ConfigError(
                f"w_mse: num_views {self.num_views}, w_iter {self.w_iter}; it takes at least 2 views and 1 partition."
            )
        if self.whiten:
            check_sizes(self.w_size, self.projection, self.w_size, self.w_eps)


class WMSE(Method):
    """Encoder, head, whitening of sub-batches, distances of all pairs of positives (Sec. 3)."""

    Config: ClassVar[type[MethodConfig]] = WMSEConfig

    def __init__(self, cfg: WMSEConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.branch = Branch(encoder, ProjectionMLP((encoder.embed_dim, cfg.hidden, cfg.projection)))

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Give d views of one distribution: bicubic crop, flip, jitter, grey; no blur (Sec. 4.1 and public code)."""
        assert isinstance(cfg, WMSEConfig)
        (view,) = mocov2_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=0.0)
        crop = Crop(size=image_size, scale=cfg.crop_scale, interpolation="bicubic")
        return (replace(view, count=cfg.num_views, crop=crop, look=replace(view.look, grey=cfg.grey)),)

    def check_batch(self, rows: int) -> None:
        """Sub-batches share the batch evenly."""
        if self.cfg.whiten:
            check_sizes(rows, self.cfg.projection, self.cfg.w_size, self.cfg.w_eps)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Whiten every view by sub-batches of all processes' rows and compare all pairs of views (Eq. 3 to 6).

        Views pass through the encoder one after the other, each with batch statistics of its own, and through the head
        together (public code).
        """
        cfg = self.cfg
        pooled = [self.branch.backbone(view).pooled_BD for view in batch.views["global"]]
        h_VBD = self.branch.head(torch.cat(pooled)).unflatten(0, (cfg.num_views, -1))
        metrics = agreement(h_VBD[0].detach(), h_VBD[1].detach())
        if not cfg.whiten:
            return StepOutput(positive_distance(h_VBD, norm=cfg.norm), metrics)
        # Every process whitens the whole batch: the same sub-batches, whatever their number.
        h_VAD = gather_with_grad(h_VBD.transpose(0, 1))[0].transpose(0, 1)
        perms_IA = partitions(cfg.w_iter, h_VAD.shape[1], t).to(h_VAD.device, non_blocking=True)
        z_VIGSD = whiten(h_VAD, perms_IA, size=cfg.w_size, eps=cfg.w_eps)
        return StepOutput(positive_distance(z_VIGSD, norm=cfg.norm), metrics)

    def param_groups(self) -> list[ParamGroup]:
        """One group: the L2 penalty is on all parameters (public code)."""
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        return [ParamGroup(name="all", params=[p for _, p in named], names=[name for name, _ in named])]

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Without whitening nothing is left against a constant."""
        assert isinstance(cfg, WMSEConfig)
        if cfg.whiten:
            return ()
        return (
            "whiten is off: without whitening W-MSE collapses to a constant (arXiv 2007.06346, Sec. 3); set "
            "--method.whiten True",
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder; the head is thrown away (Sec. 4.1)."""
        return self.branch.backbone


def partitions(count: int, rows: int, t: Progress) -> Tensor:
    """Return `count` permutations of the batch, int64 (I, A), a pure function of the step: equal in all processes."""
    keys_I = key("w_mse", t.step, list(range(count)))
    return torch.from_numpy(uniforms(keys_I, rows)).argsort(-1)
