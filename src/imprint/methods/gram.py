"""Gram anchoring: dense features that stay good over long training (DINOv3).

Simeoni, Vo, Seitzer et al. 2025, arXiv 2508.10104, Sec. 4. A further stage of a DINOv2 run: its objective goes on, and
the similarities between the patches of an image are held to those of the Gram teacher, a frozen earlier state of the
run's own average, taken anew now and then. Where paper and facebookresearch/dinov3 differ, the code is followed: the
loss is a mean over entries, not a sum. Left out: the code's large run halves the weight of small crops in this stage.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.core.errors import ConfigError
from imprint.core.progress import Duration, Epochs, Progress, Steps
from imprint.core.schedules import Schedule, constant
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask, SpreadMask
from imprint.data.view_recipes import dino_views
from imprint.data.views import View
from imprint.losses.gram import Negatives, gram_mse
from imprint.methods.base import Clipping, Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.crop_distillation import (
    Centres,
    Centring,
    Objective,
    average_of,
    drop_prototype_gradients,
    follow_,
    make_heads,
    match,
    take_over,
)
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import PrototypeHead


@dataclass(frozen=True, kw_only=True)
class GramConfig(MethodConfig):
    """Gram anchoring's choices; the objective that goes on has DINOv2's, under the same names.

    Attributes:
        gram_weight: weight of the Gram loss (Sec. 4.2: 2; the public code comes to it within 1,000 steps).
        gram_size: side in pixels of the large crops as the Gram teacher sees them, its patch features then resized to
            the student's grid (Sec. 4.3: twice the student's); None shows it what the student sees.
        refresh: the Gram teacher becomes the average again each time this much has passed (Sec. 4.2: 10,000 steps).
        refreshes: at most so many times; None sets no limit (public code, max_updates: 3).
        level: compare patches of the same `image`, or all of the `batch` on a process (public code, img_level).
        negatives: what becomes of negative similarities; see `gram_mse` (public code, 7B recipe: kept).
        prototypes: K of the class-token head.
        bottleneck: its width before the prototypes.
        patch_prototypes: K of the patch head.
        patch_bottleneck: its width before the prototypes.
        hidden: width of both heads' hidden layers.
        shared_head: one head for class tokens and patches.
        student_temp: tau_s.
        teacher_temp: tau_t; a later stage keeps the final value.
        centring: `sinkhorn` or `mean`.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp.
        center_momentum: m of the running means.
        patch_weight: weight of the patch term.
        koleo_weight: weight of KoLeo, summed over the two large crops.
        koleo_across: look for KoLeo's neighbours among the images of all processes.
        mask_probability: part of the large crops with hidden patches.
        mask_share: smallest and largest share of hidden patches of such a crop.
        momentum: EMA momentum (public code, 7B recipe: 0.999 throughout).
        freeze_prototypes: the last layers learn nothing for this long.
        patch_rate: factor on the learning rate of the patch embedding.
        global_scale: area share of the two large crops.
        local_crops: number of small crops.
        local_scale: area share of the small crops.
        local_size: side of the small crops in pixels, a multiple of the patch size.
        colour: factor on the colour jitter.
        blur: factor on the blur probabilities (0 for images of 32 pixels).
    """

    gram_weight: Schedule = field(default_factory=lambda: constant(2.0))
    gram_size: int | None = None
    refresh: Duration = Steps(10_000)
    refreshes: int | None = 3
    level: Literal["image", "batch"] = "image"
    negatives: Negatives = "keep"
    prototypes: int = 131_072
    bottleneck: int = 384
    patch_prototypes: int = 131_072
    patch_bottleneck: int = 256
    hidden: int = 2048
    shared_head: bool = False
    student_temp: float = 0.1
    teacher_temp: Schedule = field(default_factory=lambda: constant(0.07))
    centring: Centring = "sinkhorn"
    sinkhorn_iterations: int = 3
    center_momentum: float = 0.9
    patch_weight: float = 1.0
    koleo_weight: float = 0.1
    koleo_across: bool = False
    mask_probability: float = 0.5
    mask_share: tuple[float, float] = (0.1, 0.5)
    momentum: Schedule = field(default_factory=lambda: constant(0.999))
    freeze_prototypes: Duration = Epochs(0)
    patch_rate: float = 0.2
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_crops: int = 8
    local_scale: tuple[float, float] = (0.05, 0.32)
    local_size: int = 112
    colour: float = 1.0
    blur: float = 1.0

    @property
    def masked(self) -> bool:
        """Tell whether patches are hidden and matched."""
        return self.patch_weight > 0 and self.mask_probability > 0


class Gram(Method):
    """DINOv2's student, average and objective, and an anchor: the backbone whose patch similarities are kept."""

    Config: ClassVar[type[MethodConfig]] = GramConfig
    clipping: ClassVar[Clipping] = "module"

    backbone: Encoder
    image_head: PrototypeHead
    patch_head: PrototypeHead | None

    def __init__(self, cfg: GramConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        require_tokens(encoder, "Gram anchoring", ("dino", "swav"), mask=cfg.masked)
        if cfg.masked:
            encoder.enable_mask_token()
        self.backbone = encoder
        image, patch = (cfg.bottleneck, cfg.prototypes), (cfg.patch_bottleneck, cfg.patch_prototypes)
        one = cfg.shared_head or not cfg.masked
        self.image_head, self.patch_head = make_heads(encoder.embed_dim, cfg.hidden, image, None if one else patch)
        self.average = average_of(self)
        sizes = cfg.prototypes, cfg.prototypes if one else cfg.patch_prototypes
        self.centres = Centres(*sizes, cfg.center_momentum) if cfg.centring == "mean" else None
        self.anchor = frozen_copy(self.average.backbone)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """DINOv2's crops; the large ones at the Gram teacher's resolution, shrunk on the device for the others."""
        assert isinstance(cfg, GramConfig)
        large, *small = dino_views(
            image_size,
            local_size=cfg.local_size,
            local_crops=cfg.local_crops,
            global_scale=cfg.global_scale,
            local_scale=cfg.local_scale,
            strength=cfg.colour,
            blur=cfg.blur,
        )
        if cfg.gram_size is not None and cfg.gram_size != image_size:
            if cfg.gram_size < image_size:
                raise ConfigError(f"gram_size {cfg.gram_size} is smaller than the student's crops of {image_size}.")
            large = _sharper(large, cfg.gram_size, cfg.gram_size / image_size)
        return (large, *small)

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Block masks for a part of the large crops, on the student's grid."""
        assert isinstance(cfg, GramConfig)
        if not cfg.masked:
            return ()
        side, (low, high) = image_size // patch_size, cfg.mask_share
        probability = cfg.mask_probability
        return (SpreadMask(name="global", count=2, grid=(side, side), low=low, high=high, probability=probability),)

    def inherit(self, previous: Method) -> None:
        """Go on from a run of dinov2 (or of gram), and take its average as the Gram teacher."""
        take_over(self, self.average, self.centres, previous)
        self._refresh()

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Return L_DINOv2 + w L_Gram on the large crops (Sec. 4.2, Eq. 3)."""
        sharp_WBCHW = batch.views["global"]
        size = self.backbone.image_size
        if self.cfg.gram_size is not None and self.cfg.gram_size != size:
            large = _resized(sharp_WBCHW.flatten(0, 1), size, antialias=True).unflatten(0, sharp_WBCHW.shape[:2])
            batch = dataclasses.replace(batch, views={**batch.views, "global": large})
        cfg = self.cfg
        objective = Objective(
            student_temp=cfg.student_temp,
            centring=cfg.centring,
            iterations=cfg.sinkhorn_iterations,
            patch_weight=cfg.patch_weight,
            koleo_weight=cfg.koleo_weight,
            koleo_across=cfg.koleo_across,
        )
        found = match(
            self,
            self.average,
            self.centres,
            batch,
            objective,
            teacher_temp=cfg.teacher_temp(t),
            hide=cfg.masked,
            patches="masked" if cfg.masked else "none",
        )
        with torch.no_grad():
            held = self.anchor(sharp_WBCHW.flatten(0, 1))
            held_BND = held.patches_BND
            if held.grid != found.student.grid:
                maps = held_BND.mT.unflatten(2, held.grid)
                held_BND = _resized(maps, found.student.grid, antialias=False).flatten(2).mT
        gram = gram_mse(found.student.patches_BND, held_BND, level=cfg.level, negatives=cfg.negatives)
        metrics = found.metrics | {"gram": gram.detach()}
        loss = found.loss + cfg.gram_weight(t) * gram
        return StepOutput(loss, {k if "/" in k else f"gram/{k}": v for k, v in metrics.items()})

    def before_optimizer_step(self, t: Progress) -> None:
        """Freeze the prototypes for as long as the configuration says."""
        if t.before(self.cfg.freeze_prototypes):
            drop_prototype_gradients(self)

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the average, and now and then put the anchor where it is (Sec. 4.2)."""
        follow_(self.average, self, self.cfg.momentum(t))
        done = t.at(t.step + 1)
        limit = self.cfg.refreshes
        if done.every(self.cfg.refresh) and (limit is None or done.step <= limit * done.steps(self.cfg.refresh)):
            self._refresh()

    def _refresh(self) -> None:
        ema_update_(self.anchor, self.average.backbone, 0.0)

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases, norms and LayerScale; the patch embedding learns slower (public code)."""
        named = list(self.named_parameters())
        first = [(name, p) for name, p in named if ".patch_embed." in name]
        rest = [(name, p) for name, p in named if ".patch_embed." not in name]
        return split_decay(rest, decay_tokens=True) + split_decay(
            first, prefix="patch_embed_", lr_scale=self.cfg.patch_rate
        )

    @property
    def encoder(self) -> Encoder:
        """The averaged backbone."""
        return self.average.backbone


def _sharper(view: View, size: int, factor: float) -> View:
    """Return the view at another size, blurred by the same share of its side."""

    def scaled(sigma: tuple[float, float]) -> tuple[float, float]:
        return (sigma[0] * factor, sigma[1] * factor)

    looks = tuple(dataclasses.replace(look, blur_sigma=scaled(look.blur_sigma)) for look in view.looks)
    return dataclasses.replace(view.resized(size), looks=looks)


def _resized(x_BCHW: Tensor, size: int | tuple[int, int], *, antialias: bool) -> Tensor:
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(x_BCHW, size=size, mode="bicubic", align_corners=False, antialias=antialias)
