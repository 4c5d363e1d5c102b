"""DeiT: training data-efficient image transformers and distillation through attention.

Touvron, Cord, Douze, Massa, Sablayrolles, Jegou 2020, arXiv 2012.12877. A ViT learns from labels and, through a token
of its own beside the class token, from a teacher (Sec. 4): each token has its linear classifier, and both are averaged
at test time. Code followed: facebookresearch/deit. It places the distillation token right after the class token (what
the place is does not matter), averages the two classifiers' logits where the paper adds their softmax outputs, and
divides the soft loss by images times classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.convert import load_state
from imprint.backbones.encoder import Encoder
from imprint.backbones.pixel_transformer import Backbone
from imprint.backbones.teacher import Teacher, load_teacher
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.rng import key, seed_of, uniforms
from imprint.data.batch import Batch, Normalise
from imprint.data.batch_augment import kept_share
from imprint.data.views import Crop, Look, Operations, View
from imprint.losses.soft_targets import UNLABELLED, distillation_kl, hard_distillation
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.ops.erasing import random_erasing
from imprint.ops.mixing import cutmix, mixup, smoothed_one_hot

MISSING = (
    "DeiT learns from a teacher, and there is none. Name one by --method.teacher (timm:regnety_160.deit_in1k in the "
    "paper), or start from a run that classifies (--start RUN); --method.distillation none trains from labels alone."
)


@dataclass(frozen=True, kw_only=True)
class DeiTConfig(MethodConfig):
    """DeiT's choices.

    Attributes:
        distillation: what the teacher's logits say: `hard` its decision (Eq. 3), `soft` its distribution (Eq. 2), or
            `none` without a teacher (Sec. 6: plain DeiT; any encoder).
        teacher: `timm:NAME` with its classifier. Empty takes the run that this one starts from; with a teacher named
            here, that run gives the weights to start with (Sec. 6: fine-tuning at a larger size).
        teacher_weights: local file for `timm:NAME`, in place of the published weights.
        alpha: weight of the distillation, and 1 - alpha that of the labels (Eq. 2 and 3; public code). The paper's soft
            distillation has 0.1.
        temperature: of soft distillation (public code, --distillation-tau; the paper's has 3).
        soft_mean: soft distillation's sum is divided by `elements`, images times classes (public code), or by `images`.
        classes: number of classes; 0 takes the labels'.
        smoothing: of the labels (Table 9); a teacher's decision is not smoothed (public code).
        mixup: alpha of its Beta distribution (Table 9), 0 for none.
        cutmix: alpha of its Beta distribution (Table 9), 0 for none; with both, each step takes one of them.
        erasing: probability of random erasing (Table 9).
        rand_augment: magnitude of RandAugment in [0, 10] (Table 9: 9); 0 for none.
        rand_augment_spread: standard deviation of that magnitude (Table 9).
        repeats: crops of every image in a batch (Table 9: repeated augmentation, three in the public code).
        crop_scale: bounds of the crop's area share (public code: timm's default).
    """

    distillation: Literal["none", "hard", "soft"] = "hard"
    teacher: str = ""
    teacher_weights: str | None = None
    alpha: float = 0.5
    temperature: float = 1.0
    soft_mean: Literal["elements", "images"] = "elements"
    classes: int = 0
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    erasing: float = 0.25
    rand_augment: float = 9.0
    rand_augment_spread: float = 0.5
    repeats: int = 3
    crop_scale: tuple[float, float] = (0.08, 1.0)

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        for name in ("alpha", "smoothing", "erasing"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1].")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0.0:
                raise ConfigError(f"{name} {getattr(self, name)} must be positive, or 0 for none.")
        if self.repeats < 1:
            raise ConfigError(f"repeats {self.repeats}: every image is in a batch at least once.")
        if self.distillation == "none" and (self.teacher or self.teacher_weights):
            raise ConfigError("a teacher is named, but --method.distillation none listens to none; leave out one.")
        if self.teacher_weights and not self.teacher:
            raise ConfigError("--method.teacher-weights are weights of --method.teacher timm:NAME; give both.")


class DeiT(Method):
    """`backbone` with a classifier `head` on its class token and `head_dist` on its distillation token.

    The distillation token is the encoder's first register: that of timm's distilled models, which has a position of its
    own, or of any ViT with a register (a token with a learned vector; a learned position would only be added to it).
    Without a teacher `head` reads what the encoder's own classifier would, and the encoder may be any.
    """

    Config: ClassVar[type[MethodConfig]] = DeiTConfig
    needs_labels: ClassVar[bool] = True

    def __init__(self, cfg: DeiTConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        if cfg.classes < 1:
            raise ConfigError(
                "the number of classes is not known: the images have no labels, and no earlier stage says it. Give "
                "labelled images, or set --method.classes."
            )
        self.backbone = encoder
        self.head = _linear(encoder.embed_dim, cfg.classes)
        self.head_dist: nn.Linear | None = None
        self.teacher: Teacher | Method | None = None
        if cfg.distillation == "none":
            return
        if encoder.registers < 1:
            raise ConfigError(
                f"DeiT's teacher speaks to a token of its own, and '{encoder.name}' has none. Choose "
                "deit_small_distilled_patch16_224 (or tiny, base), or give a ViT one by --encoder.registers 1; a CNN "
                "learns from a teacher by the method distill, and from labels alone by --method.distillation none."
            )
        self.head_dist = _linear(encoder.embed_dim, cfg.classes)
        # What timm's distilled models pool is the mean of both tokens.
        self._pools_both = getattr(getattr(encoder, "model", None), "dist_token", None) is not None
        if cfg.teacher:
            self._learn_from(
                load_teacher(
                    cfg.teacher,
                    image_size=encoder.image_size,
                    channels=encoder.channels,
                    weights=cfg.teacher_weights,
                )
            )

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """Bicubic crops, flip, RandAugment (Table 9; the public code drops colour jitter where RandAugment is on)."""
        assert isinstance(cfg, DeiTConfig)
        crop = Crop(size=image_size, scale=cfg.crop_scale, interpolation="bicubic")
        operations = Operations(magnitude=cfg.rand_augment, spread=cfg.rand_augment_spread)
        look = Look(flip=0.5, operations=operations if cfg.rand_augment > 0 else None)
        return (View(name="global", count=cfg.repeats, crop=crop, look=look),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute (1 - alpha) CE(class token, labels) + alpha D(distillation token, teacher) (Eq. 2 and 3).

        The teacher sees the very images that the student sees: erased and mixed (Sec. 4).
        """
        images, targets_BK = self._augmented(batch, t)
        logits_BK, distilled_BK = self._logits(images)
        with torch.autocast(images.device.type, enabled=False):
            loss = F.cross_entropy(logits_BK.float(), targets_BK)
        known_B = targets_BK.sum(1) > 0
        right_B = (logits_BK.detach().argmax(1) == targets_BK.argmax(1)) & known_B
        metrics = {"deit/accuracy": right_B.sum() / known_B.sum().clamp_min(1)}
        if distilled_BK is None:
            return StepOutput(loss, metrics)
        teacher_BK = self._taught(images)
        if self.cfg.distillation == "hard":
            taught = hard_distillation(distilled_BK, teacher_BK)
        else:
            taught = distillation_kl(distilled_BK, teacher_BK, self.cfg.temperature, mean_over=self.cfg.soft_mean)
        agreed_B = distilled_BK.detach().argmax(1) == teacher_BK.argmax(1)
        metrics["deit/agreement"] = agreed_B.float().mean()
        return StepOutput((1.0 - self.cfg.alpha) * loss + self.cfg.alpha * taught, metrics)

    def _augmented(self, batch: Batch, t: Progress) -> tuple[Tensor, Tensor]:
        """Return all crops in one batch, erased and mixed, and their distributions over classes.

        Erasing is keyed by sample and crop. Mixing is drawn once for the step, and neighbours are partners (batches
        come shuffled; the last of an odd number stays alone), so that a process finds both among its own rows, whatever
        the number of processes. Images without a label count as ones whose class has no probability.
        """
        cfg, views = self.cfg, batch.views["global"]
        copies, rows = views.shape[:2]
        if batch.labels_B is None:
            raise ConfigError("DeiT learns from labels, and the images have none: use one folder per class.")
        targets_BK = smoothed_one_hot(batch.labels_B.clamp_min(0), cfg.classes, cfg.smoothing)
        targets_BK = (targets_BK * (batch.labels_B != UNLABELLED)[:, None]).repeat(copies, 1)
        images = views.flatten(0, 1)
        copy_V1 = torch.arange(copies, device=images.device)[:, None]
        if cfg.erasing > 0:
            own_B = (batch.index_B * copies + copy_V1).flatten()
            keys = {"key": seed_of("deit-erasing", t.step), "noise_key": seed_of("deit-noise", t.step)}
            images = random_erasing(images, own_B, cfg.erasing, **keys)
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(cfg, kind) > 0]
        if not kinds or rows < 2:
            return images, targets_BK
        partner_B = ((torch.arange(rows, device=images.device) ^ 1).clamp_max(rows - 1) + rows * copy_V1).flatten()
        u = uniforms(key("deit-mix", t.step), 3)
        kind = kinds[int(u[0] * len(kinds))]
        alpha = getattr(cfg, kind)
        share = kept_share(seed_of("deit-share", t.step), alpha)
        if kind == "mixup":
            return mixup(images, targets_BK, partner_B, share)
        return cutmix(images, targets_BK, partner_B, share, (float(u[1]), float(u[2])))

    def _logits(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.backbone(images_BCHW)
        if self.head_dist is None:
            return self.head(features.pooled_BD), None
        own_BD = features.cls_BD if self._pools_both else features.pooled_BD
        return self.head(own_BD), self.head_dist(features.registers_BRD[:, 0])

    @torch.no_grad()
    def _taught(self, images_BCHW: Tensor) -> Tensor:
        said = None
        if isinstance(self.teacher, Method):
            said = self.teacher.classify(images_BCHW)
        elif self.teacher is not None:
            said = self.teacher(images_BCHW).logits_BK
        if said is None:
            raise ConfigError(MISSING)
        return said

    def _learn_from(self, teacher: Teacher | Method) -> None:
        """Take a frozen teacher, after asking it how many classes it knows."""
        name = self.cfg.teacher or f"the run to start from ({type(teacher).__name__})"
        self.teacher = teacher.requires_grad_(False).eval()
        size = self.backbone.image_size
        try:
            said_BK = self._taught(torch.zeros(1, self.backbone.channels, size, size))
        except ConfigError as error:
            if str(error) != MISSING:
                raise
            raise ConfigError(f"{name} has no classifier, and DeiT's teacher has to name classes.") from error
        if said_BK.shape[1] != self.cfg.classes:
            raise ConfigError(
                f"{name} knows {said_BK.shape[1]} classes and the student shall know {self.cfg.classes}: a teacher has "
                "to be trained on the student's classes. Train one first (stage 1 of deit/small), or another student."
            )

    def inherit(self, previous: Method) -> None:
        """Learn from the earlier run; where another teacher is named, or none wanted, go on from its weights.

        An encoder may go on at another image size: its positions are resized.
        """
        if self.cfg.distillation != "none" and not self.cfg.teacher:
            if isinstance(previous, DeiT):
                previous.teacher = None  # who taught the teacher need not be kept
            self._learn_from(previous)
            return
        load_state(cast(Backbone, self.backbone), previous.encoder.state_dict(), source="the run to start from")
        for name, head in (("head", self.head), ("head_dist", self.head_dist)):
            theirs = getattr(previous, name, None)
            if (
                isinstance(head, nn.Linear)
                and isinstance(theirs, nn.Linear)
                and theirs.weight.shape == head.weight.shape
            ):
                head.load_state_dict(theirs.state_dict())

    def lacks(self) -> str | None:
        """A teacher, where none is named and no earlier run gave one."""
        return MISSING if self.head_dist is not None and self.teacher is None else None

    def normalised_by(self, normalise: Normalise) -> None:
        """Tell a teacher from elsewhere how images come; an earlier run saw them the same way."""
        if isinstance(self.teacher, Teacher):
            self.teacher.normalised_by(normalise)

    def train(self, mode: bool = True) -> DeiT:
        """Switch to training or evaluation; the teacher stays in evaluation mode (Sec. 4)."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def classify(self, images_BCHW: Tensor) -> Tensor:
        """Return class logits, the mean of both classifiers' (Sec. 4: joint classifiers)."""
        logits_BK, distilled_BK = self._logits(images_BCHW)
        return logits_BK if distilled_BK is None else (logits_BK + distilled_BK) / 2

    @property
    def encoder(self) -> Encoder:
        """The student."""
        return self.backbone


def _linear(width: int, classes: int) -> nn.Linear:
    head = nn.Linear(width, classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
