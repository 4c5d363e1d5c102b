"""DINOv2: learning robust visual features without supervision.

Oquab, Darcet, Moutakanni et al. 2023, arXiv 2304.07193. DINO's loss between class tokens of crops, iBOT's between the
patches that the student does not see, each with a head of its own, Sinkhorn-Knopp for the teacher, and KoLeo to spread
the batch. A short phase at high resolution is a further stage of the same run (Sec. 4); smaller models are distilled
from a large frozen one (Sec. 5). Where paper and facebookresearch/dinov2 differ, the code is followed: KoLeo looks for
neighbours among the images of one process, and the gains of the prototypes are trained.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from imprint.backbones.encoder import Encoder, require_tokens
from imprint.core.errors import ConfigError
from imprint.core.progress import Duration, Epochs, Progress
from imprint.core.schedules import Schedule, cosine
from imprint.data.batch import Batch
from imprint.data.mask_kinds import Mask, SpreadMask
from imprint.data.view_recipes import dino_views
from imprint.data.views import View
from imprint.methods.base import Clipping, Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.crop_distillation import (
    Centres,
    Centring,
    Network,
    Objective,
    average_in,
    average_of,
    drop_prototype_gradients,
    follow_,
    make_heads,
    match,
    take_over,
)
from imprint.nn.ema import frozen_copy
from imprint.nn.heads import PrototypeHead

MISSING = (
    "distillation needs a trained teacher: start from a finished run of dinov2 (--start RUN), or set "
    "--method.teacher-mode average."
)


@dataclass(frozen=True, kw_only=True)
class DINOv2Config(MethodConfig):
    """DINOv2's choices.

    Attributes:
        prototypes: K of the class-token head (App. B, Table 16).
        bottleneck: its width before the prototypes (public code, vitg14: head_bottleneck_dim).
        patch_prototypes: K of the patch head (Table 16).
        patch_bottleneck: its width before the prototypes (public code, vitg14).
        hidden: width of both heads' hidden layers (public code, head_hidden_dim).
        shared_head: one head for class tokens and patches, as in iBOT (Sec. 4, "untying head weights").
        student_temp: tau_s.
        teacher_temp: tau_t, warmed up linearly over the first 30 epochs (public code).
        centring: how the teacher is kept from collapse: `sinkhorn` (Sec. 4) or `mean`, DINO's running mean.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp (Sec. 4: three).
        center_momentum: m of the running means.
        patch_weight: weight of the patch term; 0 hides no patch either.
        koleo_weight: weight of KoLeo on the student's class tokens, summed over the two large crops (Sec. 4, Table 16).
        koleo_across: look for KoLeo's neighbours among the images of all processes, so that their number does not
            matter; the public code looks among one process's own.
        mask_probability: part of the large crops with hidden patches (public code, mask_sample_probability).
        mask_share: smallest and largest share of hidden patches of such a crop (public code, mask_ratio_min_max).
        teacher_mode: `average` teaches with the student's own EMA; `frozen` with the run this one starts from, without
            masks, and keeps the EMA as the final model (Sec. 5, distillation).
        distilled_patches: which patches a frozen teacher teaches: `all` of both large crops (Sec. 5), or the `masked`
            ones, whose masks then hide nothing (facebookresearch/dinov3): less memory at many prototypes.
        momentum: EMA momentum (public code, vitg14: 0.994).
        freeze_prototypes: the last layers learn nothing for this long (public code, freeze_last_layer_epochs).
        patch_rate: factor on the learning rate of the patch embedding (public code, patch_embed_lr_mult).
        global_scale: area share of the two large crops (public code).
        local_crops: number of small crops.
        local_scale: area share of the small crops.
        local_size: side of the small crops in pixels, a multiple of the patch size.
        colour: factor on the colour jitter.
        blur: factor on the blur probabilities (0 for images of 32 pixels).
    """

    prototypes: int = 131_072
    bottleneck: int = 384
    patch_prototypes: int = 131_072
    patch_bottleneck: int = 256
    hidden: int = 2048
    shared_head: bool = False
    student_temp: float = 0.1
    teacher_temp: Schedule = field(
        default_factory=lambda: Schedule(
            start=0.07, shape="constant", warmup=Epochs(30), warmup_from=0.04, warmup_reaches_start=True
        )
    )
    centring: Centring = "sinkhorn"
    sinkhorn_iterations: int = 3
    center_momentum: float = 0.9
    patch_weight: float = 1.0
    koleo_weight: float = 0.1
    koleo_across: bool = False
    mask_probability: float = 0.5
    mask_share: tuple[float, float] = (0.1, 0.5)
    teacher_mode: Literal["average", "frozen"] = "average"
    distilled_patches: Literal["all", "masked"] = "all"
    momentum: Schedule = field(default_factory=lambda: cosine(0.994, 1.0))
    freeze_prototypes: Duration = Epochs(1)
    patch_rate: float = 0.2
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_crops: int = 8
    local_scale: tuple[float, float] = (0.05, 0.32)
    local_size: int = 98
    colour: float = 1.0
    blur: float = 1.0

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        low, high = self.mask_share
        if not 0 <= self.mask_probability <= 1 or not 0 <= low <= high <= 1:
            raise ConfigError(
                f"mask_probability {self.mask_probability} and mask_share {self.mask_share} are shares in [0, 1], the "
                "smaller one first."
            )

    @property
    def patches(self) -> Literal["masked", "all", "none"]:
        """Which patches of the large crops the patch term matches."""
        if self.patch_weight == 0:
            return "none"
        if self.teacher_mode == "frozen" and self.distilled_patches == "all":
            return "all"
        return "masked" if self.mask_probability > 0 else "none"

    @property
    def hide(self) -> bool:
        """Tell whether the student sees the mask token where the masks are."""
        return self.patches == "masked" and self.teacher_mode == "average"

    @property
    def objective(self) -> Objective:
        """The settings of the loss."""
        return Objective(
            student_temp=self.student_temp,
            centring=self.centring,
            iterations=self.sinkhorn_iterations,
            patch_weight=self.patch_weight,
            koleo_weight=self.koleo_weight,
            koleo_across=self.koleo_across,
        )


class DINOv2(Method):
    """A student in three parts (backbone, class-token head, patch head), their average, and what teaches them.

    Gradients are clipped in each part by itself, as in the public code, where each is a model of its own.
    """

    Config: ClassVar[type[MethodConfig]] = DINOv2Config
    clipping: ClassVar[Clipping] = "module"

    backbone: Encoder
    image_head: PrototypeHead
    patch_head: PrototypeHead | None
    teacher: Network | None

    def __init__(self, cfg: DINOv2Config, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        if cfg.hide:
            require_tokens(encoder, "DINOv2", ("dino", "swav"), mask=True)
            encoder.enable_mask_token()
        self.backbone = encoder
        image, patch = (cfg.bottleneck, cfg.prototypes), (cfg.patch_bottleneck, cfg.patch_prototypes)
        one = cfg.shared_head or cfg.patches == "none"
        self.image_head, self.patch_head = make_heads(encoder.embed_dim, cfg.hidden, image, None if one else patch)
        self.average = average_of(self)
        sizes = cfg.prototypes, cfg.prototypes if one else cfg.patch_prototypes
        self.centres = Centres(*sizes, cfg.center_momentum) if cfg.centring == "mean" else None
        self.teacher = None

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Two large crops and several small ones, with DINO's looks (App. B.2)."""
        assert isinstance(cfg, DINOv2Config)
        return dino_views(
            image_size,
            local_size=cfg.local_size,
            local_crops=cfg.local_crops,
            global_scale=cfg.global_scale,
            local_scale=cfg.local_scale,
            strength=cfg.colour,
            blur=cfg.blur,
        )

    @classmethod
    def masks(cls, cfg: MethodConfig, image_size: int, patch_size: int) -> tuple[Mask, ...]:
        """Block masks for a part of the large crops, their shares spread evenly over the batch (public code)."""
        assert isinstance(cfg, DINOv2Config)
        if cfg.patches != "masked":
            return ()
        side, (low, high) = image_size // patch_size, cfg.mask_share
        probability = cfg.mask_probability
        return (SpreadMask(name="global", count=2, grid=(side, side), low=low, high=high, probability=probability),)

    def inherit(self, previous: Method) -> None:
        """Go on from a run (another resolution), or take its average as the frozen teacher (distillation)."""
        if self.cfg.teacher_mode == "average":
            take_over(self, self.average, self.centres, previous)
            return
        teacher = frozen_copy(average_in(previous))
        own = [_shape(head) for head in (self.image_head, self.patch_head)]
        its = [_shape(head) for head in (teacher.image_head, teacher.patch_head)]
        # A teacher without a head for patches is fine where none are taught.
        same = own == its if self.cfg.patches != "none" else own[0] == its[0]
        if not same or teacher.backbone.patch_size != self.backbone.patch_size:
            raise ConfigError(
                f"the teacher has prototypes {its} and patches of {teacher.backbone.patch_size} pixels, the student "
                f"{own} and {self.backbone.patch_size}: they must agree (prototypes, patch_prototypes, shared_head, "
                "encoder.patch_size)."
            )
        self.teacher = teacher

    def lacks(self) -> str | None:
        """What an earlier run must have left."""
        return MISSING if self.cfg.teacher_mode == "frozen" and self.teacher is None else None

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Match class tokens across crops and patches within crops to the teacher's (Sec. 4)."""
        teacher = self.average if self.cfg.teacher_mode == "average" else self.teacher
        if teacher is None:
            raise ConfigError(MISSING)
        found = match(
            self,
            teacher,
            self.centres,
            batch,
            self.cfg.objective,
            teacher_temp=self.cfg.teacher_temp(t),
            hide=self.cfg.hide,
            patches=self.cfg.patches,
        )
        return StepOutput(found.loss, {k if "/" in k else f"dinov2/{k}": v for k, v in found.metrics.items()})

    def before_optimizer_step(self, t: Progress) -> None:
        """Freeze the prototypes early on: no gradient at all, so that weight decay skips them too."""
        if t.before(self.cfg.freeze_prototypes):
            drop_prototype_gradients(self)

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the average: the teacher, or in distillation the final model."""
        follow_(self.average, self, self.cfg.momentum(t))

    def param_groups(self) -> list[ParamGroup]:
        """Decay everything but biases, norms and LayerScale; the patch embedding learns slower (public code)."""
        named = list(self.named_parameters())
        first = [(name, p) for name, p in named if ".patch_embed." in name]
        rest = [(name, p) for name, p in named if ".patch_embed." not in name]
        return split_decay(rest, decay_tokens=True) + split_decay(
            first, prefix="patch_embed_", lr_scale=self.cfg.patch_rate
        )

    @classmethod
    def dangers(cls, cfg: MethodConfig) -> tuple[str, ...]:
        """Without balance or spread the teacher's distributions may collapse."""
        assert isinstance(cfg, DINOv2Config)
        found = []
        if cfg.teacher_mode == "average" and cfg.centring == "sinkhorn" and cfg.sinkhorn_iterations == 0:
            found.append(
                "sinkhorn_iterations is 0: nothing keeps the teacher from giving all images to one prototype; set "
                "--method.sinkhorn-iterations 3"
            )
        if cfg.teacher_mode == "average" and cfg.koleo_weight == 0:
            found.append(
                "koleo_weight is 0: nothing keeps the vectors of different images apart (arXiv 2304.07193, Table 1); "
                "set --method.koleo-weight 0.1"
            )
        return tuple(found)

    @property
    def encoder(self) -> Encoder:
        """The averaged backbone: the teacher's, or in distillation the final model's."""
        return self.average.backbone


def _shape(head: PrototypeHead | None) -> int | None:
    return None if head is None else head.prototypes.direction.shape[0]
