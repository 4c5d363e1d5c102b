"""Noisy Student: self-training with noise improves ImageNet classification.

Xie, Luong, Hovy, Le 2020, arXiv 1911.04252. Algorithm 1: (1) a teacher is trained on labelled images, with noise; (2)
without any noise it labels unlabelled images; (3) an equal or larger student is trained on both, with noise: random
augmentation, dropout, stochastic depth; (4) the student becomes the teacher. Each of these networks is a stage of a
run; step 2 is made once, before a student's first step (`train.pseudo_labels`).

Where paper and google-research/noisystudent differ, the code is followed: labelled images' smoothing, the sum over
labelled and pseudo-labelled images divided by the number of labelled ones, and the moving average of the weights, which
is what is evaluated, exported and what labels images.

Shape suffixes: B images, K classes, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.pseudo_labels import PseudoLabels
from imprint.data.views import Crop, Look, Operations, View
from imprint.losses.noisy_student import joint_cross_entropy
from imprint.methods.base import Method, MethodConfig, StepOutput
from imprint.nn.classifier import Classifier
from imprint.nn.ema import ema_update_, frozen_copy


@dataclass(frozen=True, kw_only=True)
class NoisyStudentConfig(MethodConfig):
    """Noisy Student's choices; stochastic depth is `encoder.drop_path` (Sec. 3.2: 0.2 at the last layer).

    Attributes:
        stage: `teacher` learns from labels alone, `student` from pseudo-labels as well (Algorithm 1).
        classes: number of classes; 0 takes the labels' or the previous stage's.
        dropout: probability at the last layer (Sec. 3.2).
        operations: random operations on an image, RandAugment's N (Sec. 3.2); 0 leaves RandAugment out.
        magnitude: of these operations, in [0, 10]. The paper's 27 (Sec. 3.2) is of the same scale, on which the code's
            operations go on beyond 10 and these do not.
        spread: standard deviation of the magnitude (the code has none).
        crop_scale: bounds of the crop's area share (the code's, from EfficientNet).
        smoothing: of one-hot labels (the code's --label_smoothing); soft pseudo-labels are taken as they are.
        average: decay of the moving average of the weights (the code's --moving_average_decay), at most (1 + n) / (10 +
            n) after n steps; 0 keeps none.
        soft: soft pseudo-labels, the teacher's distribution, or hard ones, its decision (Sec. 4.3 and App. A.2: soft
            ones are better for images from outside of the classes).
        temperature: of the teacher's distribution (the code's --teacher_softmax_temp).
        confidence: smallest probability of the teacher's class that an image is used with (Sec. 3.1).
        per_class: images of every class: the most confident ones, or all of them repeated (Sec. 3.1); 0 takes the
            number of the largest class.
        ratio: unlabelled images for each labelled one in a batch (the code's --unlabel_ratio: 1 for EfficientNet-B0, 3
            for B1 to B7; 14, and 28 in the last round, for L2: Sec. 3.2).
        from_teacher: the student goes on from the teacher's weights; the paper's starts afresh (App. A.2).
    """

    stage: Literal["teacher", "student"] = "teacher"
    classes: int = 0
    dropout: float = 0.5
    operations: int = 2
    magnitude: float = 10.0
    spread: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    smoothing: float = 0.1
    average: float = 0.9999
    soft: bool = True
    temperature: float = 1.0
    confidence: float = 0.3
    per_class: int = 130_000
    ratio: float = 3.0
    from_teacher: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("dropout", "smoothing", "average", "confidence"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1).")
        if self.temperature <= 0.0 or self.ratio <= 0.0:
            raise ConfigError(f"temperature {self.temperature} and ratio {self.ratio} must be positive.")
        if self.per_class < 0 or self.operations < 0:
            raise ConfigError(f"per_class {self.per_class} and operations {self.operations} must be at least 0.")


class NoisyStudent(Method):
    """A classifier under noise; `average` is the moving average of its weights."""

    Config: ClassVar[type[MethodConfig]] = NoisyStudentConfig
    needs_labels: ClassVar[bool] = True

    def __init__(self, cfg: NoisyStudentConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        self.network = Classifier(encoder, cfg.classes, cfg.dropout)
        self.average: Classifier | None = frozen_copy(self.network).eval() if cfg.average else None
        self.taught = cfg.stage == "teacher"

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One crop with a flip and RandAugment: input noise (Sec. 2)."""
        assert isinstance(cfg, NoisyStudentConfig)
        operations = (
            Operations(magnitude=cfg.magnitude, spread=cfg.spread, number=cfg.operations) if cfg.operations else None
        )
        crop = Crop(size=image_size, scale=cfg.crop_scale, interpolation="bicubic")
        return (View(name="global", crop=crop, look=Look(flip=0.5, operations=operations)),)

    @classmethod
    def pseudo_labels(cls, cfg: MethodConfig) -> PseudoLabels | None:
        """Students have pseudo-labels (Algorithm 1, step 2)."""
        assert isinstance(cfg, NoisyStudentConfig)
        if cfg.stage == "teacher":
            return None
        return PseudoLabels(
            confidence=cfg.confidence,
            per_class=cfg.per_class,
            soft=cfg.soft,
            temperature=cfg.temperature,
            ratio=cfg.ratio,
        )

    def inherit(self, previous: Method) -> None:
        """A student starts afresh, whatever the size of its teacher, unless told to go on from it."""
        theirs = int(getattr(getattr(previous, "cfg", None), "classes", self.cfg.classes))
        if theirs != self.cfg.classes:
            raise ConfigError(f"the teacher knows {theirs} classes and the student shall know {self.cfg.classes}.")
        self.taught = True
        if not self.cfg.from_teacher:
            return
        if not isinstance(previous, NoisyStudent):
            raise ConfigError(
                f"a student goes on from the weights of another Noisy Student, not from {type(previous).__name__}; use "
                "--no-method.from-teacher."
            )
        for own in (self.network, self.average):
            if own is None:
                continue
            try:
                own.load_state_dict((previous.average or previous.network).state_dict())
            except RuntimeError as error:
                raise ConfigError(
                    "a student that goes on from its teacher's weights needs the teacher's encoder; use "
                    f"--no-method.from-teacher for another ({str(error).splitlines()[-1].strip()})."
                ) from error

    def lacks(self) -> str | None:
        """A student needs a teacher."""
        return None if self.taught else "a student needs the run of its teacher; name that run by --start."

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Cross entropy of labelled and pseudo-labelled images together (Algorithm 1, step 3)."""
        labels_B = batch.labels_B
        if labels_B is None:
            raise ConfigError("Noisy Student learns from labels, and the images have none: use one folder per class.")
        logits_BK = self.network(batch.views["global"][0])
        pseudo_B = batch.targets.get("pseudo")
        student = self.cfg.stage == "student"
        loss = joint_cross_entropy(
            logits_BK,
            labels_B,
            batch.targets.get("classes"),
            pseudo_B,
            smoothing=self.cfg.smoothing,
            ratio=self.cfg.ratio if student and pseudo_B is not None else 0.0,
        )
        right_B = logits_BK.detach().argmax(1) == labels_B
        told_B = torch.zeros_like(right_B) if pseudo_B is None else pseudo_B
        known_B = (labels_B >= 0) & ~told_B
        metrics = {"noisy_student/accuracy": (right_B & known_B).sum() / known_B.sum().clamp_min(1)}
        if pseudo_B is not None:
            metrics["noisy_student/agreement"] = (right_B & told_B).sum() / told_B.sum().clamp_min(1)
        return StepOutput(loss, metrics)

    @torch.no_grad()
    def after_optimizer_step(self, t: Progress) -> None:
        """Move the average: weights and BatchNorm statistics, as the code does."""
        if self.average is None:
            return
        n = t.step + 1
        decay = min(self.cfg.average, (1 + n) / (10 + n))
        ema_update_(self.average, self.network, decay)
        pairs = list(zip(self.average.buffers(), self.network.buffers(), strict=True))
        floats = [(own, new) for own, new in pairs if own.is_floating_point()]
        if floats:
            torch._foreach_lerp_([own for own, _ in floats], [new for _, new in floats], 1.0 - decay)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)

    def train(self, mode: bool = True) -> NoisyStudent:
        """Switch to training or evaluation; the average has no noise and no statistics of its own."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    @property
    def best(self) -> Classifier:
        """What labels images, is evaluated and exported."""
        return self.network if self.average is None else self.average

    def classify(self, images_BCHW: Tensor) -> Tensor | None:
        """Return class logits."""
        logits_BK: Tensor = self.best(images_BCHW)
        return logits_BK

    @property
    def encoder(self) -> Encoder:
        """The encoder of the moving average, or of the network where there is none."""
        encoder = self.best.backbone
        assert isinstance(encoder, nn.Module)
        return encoder
