"""Knowledge distillation: a student learns what a teacher says of each image, all of it, not only the best guess.

Hinton, Vinyals, Dean 2015, arXiv 1503.02531. The teacher's probabilities at a raised temperature say which wrong
classes are how wrong; a small network that matches them learns more from an image than its label says, and needs no
label at all. Features can be matched in place of classes or beside them (FitNets, arXiv 1412.6550), so that any encoder
teaches any other.

Shapes: B images, N patches, D width of the teacher, K classes.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import LanguageModel
from imprint.backbones.teacher import Teacher, load_teacher, resized
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.data.view_recipes import evaluation_views, probe_views
from imprint.data.views import Look, View
from imprint.losses.feature_distillation import Distance, feature_distance
from imprint.losses.soft_targets import UNLABELLED, distillation_kl, with_labels
from imprint.methods.base import Method, MethodConfig, StepOutput

MISSING = (
    "a student needs a teacher: start from a finished run (--start RUN, with a classifier where its classes are to be "
    "matched), or set --method.teacher to timm:NAME, a run or an exported encoder. With --method.alpha 0 the labels "
    "alone teach."
)


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(MethodConfig):
    """The choices of knowledge distillation.

    Attributes:
        teacher: timm:NAME with its classifier, or a run or an exported encoder, of which only features are taken;
            empty takes the method of the run that this one starts from, classifier and all.
        teacher_weights: local file for timm:NAME, in place of the published weights.
        teacher_size: side in pixels at which the teacher sees the images; None for the student's.
        match: what of the teacher is matched: its class `logits` (Sec. 2), its `pooled` vector or its patch `tokens`
            through a learned projection (FitNets, arXiv 1412.6550, Eq. 3); several are added up.
        temperature: T of both softmaxes (Sec. 3: 20; lower ones for much smaller students).
        alpha: weight of the teacher; that of the labels is 1 - alpha (Sec. 3: 1, the soft targets alone; Sec. 4.1:
            0.5). Images without a label (-1) have no term for it. 0 needs no teacher: it trains one.
        distance: of features: `mse` to the teacher's standardised vectors, or `cosine`.
        feature_weight: factor on the distance of features.
        crop: `random` is a random resized crop and a flip, the same for teacher and student; `center` the plain view
            (Sec. 3: the student's images are not distorted), of which the teacher's answers are kept on disk.
        crop_scale: bounds of the random crop's area share.
        flip: probability of the flip that goes with it.
        keep_answers: keep the teacher's answers on disk where views allow it (`crop` center).
        classes: number of classes; 0 takes the teacher's or the labels'.
        dropout: before the student's classifier (Sec. 3: the teacher has it).
    """

    teacher: str = ""
    teacher_weights: str | None = None
    teacher_size: int | None = None
    match: tuple[Literal["logits", "pooled", "tokens"], ...] = ("logits",)
    temperature: float = 20.0
    alpha: float = 1.0
    distance: Distance = "mse"
    feature_weight: float = 1.0
    crop: Literal["random", "center"] = "random"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    keep_answers: bool = True
    classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha {self.alpha} must lie in [0, 1]: 1 is the teacher alone, 0 the labels alone.")
        if self.temperature <= 0.0:
            raise ConfigError(
                f"temperature {self.temperature} must be positive; 1 leaves the probabilities as they are."
            )
        if not self.match or len(set(self.match)) != len(self.match):
            raise ConfigError(f"match {self.match} must name one or several of logits, pooled and tokens, each once.")
        if self.teacher_weights is not None and not self.teacher.startswith("timm:"):
            raise ConfigError("teacher_weights go with a timm model: set --method.teacher timm:NAME.")

    @property
    def classifies(self) -> bool:
        """Whether the student has a classifier."""
        return "logits" in self.match or self.alpha < 1.0


class Answers(nn.Module):
    """A frozen teacher and what it is asked: images (B, C, H, W) -> float32 tensors (B, ...) by name.

    Args:
        source: a teacher, or the method of an earlier run, which is asked by `classify` and its encoder.
        match: what is asked.
        image_size: side in pixels at which a method sees the images; None leaves them as they come.
    """

    def __init__(self, source: Teacher | Method, match: tuple[str, ...], image_size: int | None = None) -> None:
        super().__init__()
        self.source, self.match, self.image_size = source, match, image_size
        self.requires_grad_(False)
        self.train(False)

    @torch.no_grad()
    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return `teacher:logits` (B, K), `teacher:pooled` (B, D) and `teacher:tokens` (B, N, D), as far as asked."""
        said: dict[str, Tensor | None] = {}
        if isinstance(self.source, Teacher):
            all_of_it = self.source(images_BCHW)
            said = {"logits": all_of_it.logits_BK, "pooled": all_of_it.pooled_BD, "tokens": all_of_it.patches_BND}
        else:
            images_BCHW = resized(images_BCHW, self.image_size)
            if "logits" in self.match:
                said["logits"] = self.source.classify(images_BCHW)
            if self.match != ("logits",):
                features = self.source.encoder(images_BCHW)
                said |= {"pooled": features.pooled_BD, "tokens": features.patches_BND}
        return {f"teacher:{name}": x.float() for name in self.match if (x := said[name]) is not None}

    def train(self, mode: bool = True) -> Answers:
        """Stay in evaluation mode: BatchNorm uses what it learned, nothing is dropped."""
        super().train(False)
        return self


class Distillation(Method):
    """A student, `backbone` and its classifier `head`, and a frozen `teacher`."""

    Config: ClassVar[type[MethodConfig]] = DistillationConfig

    def __init__(self, cfg: DistillationConfig, encoder: Encoder) -> None:
        super().__init__()
        self.cfg, self.backbone = cfg, encoder
        self.teacher: Answers | None = None
        self.head: nn.Sequential | None = None
        self.projections = nn.ModuleDict()
        source: Teacher | None = None
        if cfg.teacher and cfg.alpha > 0.0:
            size = cfg.teacher_size or encoder.image_size
            source = load_teacher(cfg.teacher, image_size=size, channels=encoder.channels, weights=cfg.teacher_weights)
        self.classes = cfg.classes or (0 if source is None else source.classes)
        if source is not None:
            self._learn_from(source, source.encoder, source.classes)
        if cfg.classifies:
            self.head = _classifier(encoder.embed_dim, self.classes, cfg.dropout)

    def _learn_from(self, source: Teacher | Method, encoder: Encoder, classes: int) -> None:
        """Ask this network of `classes` classes (0: none) from now on."""
        match = self.cfg.match
        if "logits" in match and classes == 0:
            raise ConfigError(
                f"the teacher '{encoder.name}' has no classifier. Match its features (--method.match pooled), or take "
                "one with classes: timm:NAME, or --start RUN of a run that learned from labels."
            )
        if "logits" in match and classes != self.classes:
            raise ConfigError(
                f"the teacher knows {classes} classes and the student shall know {self.classes}. Match the teacher's "
                "features (--method.match pooled), or take a teacher of the same classes."
            )
        self.teacher = Answers(source, match, self.cfg.teacher_size)
        for name in (n for n in match if n != "logits"):
            own, other = (_width(e, name) for e in (self.backbone, encoder))
            self.projections[name] = nn.Linear(own, other)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """One view, which student and teacher both see."""
        assert isinstance(cfg, DistillationConfig)
        if cfg.crop == "center":
            return (dataclasses.replace(evaluation_views(image_size)[0], name="global"),)
        (view,) = probe_views(image_size, scale=cfg.crop_scale)
        return (dataclasses.replace(view, look=Look(flip=cfg.flip)),)

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Match the teacher (Sec. 2) and, with `alpha` below 1, the labels where there are any."""
        cfg, images = self.cfg, batch.views["global"][0]
        if self.teacher is None and cfg.alpha > 0.0:
            raise ConfigError(MISSING)
        said = {k: v for k, v in batch.targets.items() if k.startswith("teacher:")}
        if not said and self.teacher is not None:
            said = self.teacher(images)
        features = self.backbone(images)
        logits_BK = None if self.head is None else self.head(features.pooled_BD)

        distilled, metrics = torch.zeros((), device=images.device), {}
        if logits_BK is not None and "teacher:logits" in said:
            target_BK = said["teacher:logits"]
            distilled = distillation_kl(logits_BK, target_BK, cfg.temperature)
            metrics["distill/agreement"] = (logits_BK.detach().argmax(1) == target_BK.argmax(1)).float().mean()
        for name, projection in self.projections.items():
            own = features.pooled_BD if name == "pooled" else features.patches_BND
            distance = self._distance(projection(own), said[f"teacher:{name}"])
            distilled = distilled + cfg.feature_weight * distance
            metrics[f"distill/{name}"] = distance.detach()

        if logits_BK is None:
            return StepOutput(distilled, metrics)
        if batch.labels_B is None and cfg.alpha < 1.0:
            raise ConfigError(
                "the labels have a weight and the images have none: use one folder per class, or --method.alpha 1."
            )
        loss = distilled
        if batch.labels_B is not None:
            if cfg.alpha < 1.0:
                loss = with_labels(logits_BK, batch.labels_B, distilled, cfg.alpha)
            known_B = batch.labels_B != UNLABELLED
            right_B = (logits_BK.detach().argmax(1) == batch.labels_B) & known_B
            metrics["distill/accuracy"] = right_B.sum() / known_B.sum().clamp_min(1)
        return StepOutput(loss, metrics)

    def _distance(self, own: Tensor, other: Tensor) -> Tensor:
        if own.ndim == 3 and own.shape[1] != other.shape[1]:
            raise ConfigError(
                f"tokens are matched one by one, and the student has {own.shape[1]} and the teacher {other.shape[1]} "
                "of them. Give both the same grid (--encoder.patch-size, --method.teacher-size), or match the pooled "
                "vector."
            )
        return feature_distance(own, other, self.cfg.distance)

    def frozen_teacher(self) -> nn.Module | None:
        """The teacher, whose answers about a view that is always the same are kept."""
        return self.teacher if self.cfg.keep_answers else None

    def inherit(self, previous: Method) -> None:
        """Take the earlier run as the teacher; with a teacher of its own, or none, go on from that run's encoder."""
        if self.cfg.alpha == 0.0 or self.teacher is not None:
            self._go_on(previous)
            return
        source: Teacher | Method
        if isinstance(previous, Distillation):  # without its own teacher
            source = Teacher(previous.backbone, _linears(previous.head), Normalise(), self.cfg.teacher_size)
            classes = source.classes
        else:
            classes = _classes_of(previous)
            encoder = previous.encoder
            encoder = encoder.vision if isinstance(encoder, DualEncoder) else encoder
            source = previous if classes else Teacher(encoder, (), Normalise(), self.cfg.teacher_size)
        source = copy.deepcopy(source)
        self._learn_from(source, source.encoder, classes)

    def _go_on(self, previous: Method) -> None:
        own, other = self.backbone.state_dict(), previous.encoder.state_dict()
        fitting = {k: v for k, v in other.items() if k in own and v.shape == own[k].shape}
        if fitting.keys() != own.keys():
            missing = next(k for k in own if k not in fitting)
            raise ConfigError(
                f"the encoder of the run to start from has another shape ('{missing}'); choose the same --encoder."
            )
        self.backbone.load_state_dict(fitting)
        if isinstance(previous, Distillation) and previous.classes == self.classes and previous.head and self.head:
            self.head.load_state_dict(previous.head.state_dict())

    def lacks(self) -> str | None:
        """A teacher, unless the labels alone teach."""
        return MISSING if self.cfg.alpha > 0.0 and self.teacher is None else None

    @classmethod
    def wants_classes(cls, cfg: MethodConfig) -> bool:
        """A student that classifies needs their number, unless its teacher knows it."""
        assert isinstance(cfg, DistillationConfig)
        return cfg.classes == 0 and cfg.classifies

    def normalised_by(self, normalise: Normalise) -> None:
        """Tell a teacher that was loaded how its images come."""
        if self.teacher is not None and isinstance(self.teacher.source, Teacher):
            self.teacher.source.normalised_by(normalise)

    def classify(self, images_BCHW: Tensor) -> Tensor | None:
        """Return class logits (B, K); None for a student of features."""
        if self.head is None:
            return None
        logits_BK: Tensor = self.head(self.backbone(images_BCHW).pooled_BD)
        return logits_BK

    @property
    def encoder(self) -> Encoder:
        """The student's encoder."""
        return self.backbone


def _classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    if classes < 1:
        raise ConfigError(
            "the number of classes is not known: the images have no labels, and neither a teacher nor an earlier run "
            "says it. Give labelled images, or set --method.classes."
        )
    linear = nn.Linear(width, classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.Dropout(dropout), linear)


def _linears(head: nn.Sequential | None) -> list[nn.Linear]:
    return [] if head is None else [part for part in head if isinstance(part, nn.Linear)]


@torch.no_grad()
def _classes_of(previous: Method) -> int:
    """Return how many classes a method tells apart, 0 without a classifier."""
    encoder, training = previous.encoder, previous.training
    if isinstance(encoder, LanguageModel):
        raise ConfigError(f"a {type(previous).__name__} reads text; start from a run that sees images.")
    logits_BK = previous.eval().classify(torch.zeros(1, encoder.channels, encoder.image_size, encoder.image_size))
    previous.train(training)
    return 0 if logits_BK is None else logits_BK.shape[1]


def _width(encoder: Encoder, name: str) -> int:
    """Return the width of what is matched; a few CNNs have another one in their feature map."""
    return encoder.embed_dim if name == "pooled" else int(getattr(encoder, "patch_dim", encoder.embed_dim))
