"""SimCLR v2: big self-supervised models are strong semi-supervised learners.

Chen, Kornblith, Swersky, Norouzi, Hinton 2020, arXiv 2006.10029. Three stages (Sec. 2, Fig. 3): contrastive pretraining
without labels, fine-tuning on a few labels from a middle layer of the projection head, and distillation of the
fine-tuned network into a student on all images, mostly without labels. Where paper and google-research/simclr differ
(the factor T^2 of the distillation loss), the code is followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.view_recipes import probe_views, simclr_views
from imprint.data.views import View
from imprint.dist.collectives import all_gather, gather_with_grad
from imprint.losses.contrastive import nt_xent
from imprint.losses.soft_targets import UNLABELLED, soft_cross_entropy, with_labels
from imprint.methods.base import Method, MethodConfig, ParamGroup, StepOutput, split_decay
from imprint.nn.branch import Branch
from imprint.nn.ema import ema_update_, frozen_copy
from imprint.nn.heads import ProjectionMLP
from imprint.nn.queue import KeyQueue
from imprint.ops.spread import agreement

MODULES_PER_LAYER = 3
"""A hidden layer of the head is a linear map, a BatchNorm and a ReLU."""


MISSING = "distillation needs the fine-tuned network of a run before it; name that run by --start."


@dataclass(frozen=True, kw_only=True)
class SimCLRv2Config(MethodConfig):
    """SimCLR v2's choices.

    Attributes:
        stage: which of the three stages this run is (Fig. 3).
        temperature: tau of NT-Xent (google-research/simclr, --temperature for ImageNet).
        head_layers: layers of the projection head (Sec. 3.1: three, one more than SimCLR's).
        hidden: width of the head's hidden layers; None takes the encoder's (the public code).
        projection: width of z (the public code, --proj_out_dim).
        memory: keys of an EMA network that are further negatives (Sec. 2; the paper keeps 65,536); 0 keeps none. A
            multiple of twice the batch.
        momentum: of the EMA network (Sec. 3.1).
        colour: jitter strength s of pretraining; the other two stages have no colour distortion (Sec. 3.1).
        blur: probability of the Gaussian blur in pretraining.
        crop_scale: bounds of the crop's area share, in all stages (the public code, data_util.py).
        finetune_from: the head's layer whose output the classifier takes: 1 its first (Sec. 2; after BatchNorm and
            ReLU), 0 the encoder's output (the paper's choice with all labels).
        classes: number of classes; 0 takes the labels' or the previous stage's.
        distill_temperature: tau of distillation (Sec. 3.1: 0.1 for a student like its teacher, 1 for a smaller one).
        alpha: weight of distillation; the labels' cross entropy has 1 - alpha (Eq. 3). 1 uses no label (Eq. 2).
    """

    stage: Literal["pretrain", "finetune", "distill"] = "pretrain"
    temperature: float = 0.1
    head_layers: int = 3
    hidden: int | None = None
    projection: int = 128
    memory: int = 0
    momentum: float = 0.999
    colour: float = 1.0
    blur: float = 0.5
    crop_scale: tuple[float, float] = (0.08, 1.0)
    finetune_from: int = 1
    classes: int = 0
    distill_temperature: float = 0.1
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        if not 0 <= self.finetune_from < self.head_layers:
            raise ConfigError(
                f"finetune_from {self.finetune_from}: a head of {self.head_layers} layers can be left after layer "
                f"0 (none of it) to {self.head_layers - 1}."
            )
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha {self.alpha} must lie in [0, 1]; 1 distils without labels.")
        if self.memory < 0 or self.memory % 2:
            raise ConfigError(f"memory {self.memory} must be an even number of keys, or 0 for none.")


class Classifier(nn.Module):
    """Encoder, the first layers of the projection head, and a linear map to classes: (B, C, H, W) -> (B, K)."""

    def __init__(self, backbone: Encoder, neck: nn.Sequential, width: int, classes: int) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.linear.weight, std=0.01)  # the public code's
        nn.init.zeros_(self.linear.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(self.neck(self.backbone(images_BCHW).pooled_BD))
        return logits


class SimCLRv2(Method):
    """Pretrain `branch`, fine-tune `network` from it, distil `teacher`, which is that network, into a new `network`."""

    Config: ClassVar[type[MethodConfig]] = SimCLRv2Config

    def __init__(self, cfg: SimCLRv2Config, encoder: Encoder) -> None:
        super().__init__()
        self.cfg = cfg
        width = encoder.embed_dim
        hidden = cfg.hidden or width
        # BatchNorm after every layer, the last with a gain but no shift (google-research/simclr, model_util.py).
        head = ProjectionMLP((width, *(hidden,) * (cfg.head_layers - 1), cfg.projection), last_norm="scale")
        self.teacher: Classifier | None = None
        if cfg.stage == "pretrain":
            self.branch = Branch(encoder, head)
            if cfg.memory:
                self.slow = frozen_copy(self.branch)
                # Random keys count at first, as in MoCo's code: they are easy negatives and soon gone.
                self.keys = KeyQueue(cfg.projection, cfg.memory, random_start=True)
            return
        if cfg.classes < 1:
            raise ConfigError(
                "the number of classes is not known: the images have no labels, and no earlier stage says it. Give "
                "labelled images, or set --method.classes."
            )
        layers = cfg.finetune_from if cfg.stage == "finetune" else 0  # a student has no head (Sec. 3.1)
        neck = nn.Sequential(*list(head)[: MODULES_PER_LAYER * layers])
        self.network = Classifier(encoder, neck, hidden if layers else width, cfg.classes)

    @classmethod
    def views(cls, cfg: MethodConfig, image_size: int) -> tuple[View, ...]:
        """SimCLR's two views to pretrain; then one crop and flip (Sec. 3.1)."""
        assert isinstance(cfg, SimCLRv2Config)
        if cfg.stage == "pretrain":
            return simclr_views(image_size, scale=cfg.crop_scale, strength=cfg.colour, blur=cfg.blur)
        return probe_views(image_size, scale=cfg.crop_scale)

    def check_batch(self, rows: int) -> None:
        """The memory takes the keys of both views of whole batches."""
        if self.cfg.stage == "pretrain" and self.cfg.memory:
            self.keys.check(2 * rows)

    def lacks(self) -> str | None:
        """What an earlier run must have left."""
        return MISSING if self.cfg.stage == "distill" and self.teacher is None else None

    def forward(self, batch: Batch, t: Progress) -> StepOutput:
        """Compute the stage's loss."""
        if self.cfg.stage == "pretrain":
            return self._contrast(batch)
        return self._finetune(batch) if self.cfg.stage == "finetune" else self._distill(batch)

    def _contrast(self, batch: Batch) -> StepOutput:
        """NT-Xent (Eq. 1) over all views of the batch and, with a memory, its keys as further negatives."""
        views = batch.views["global"]
        z1_BD, z2_BD = self.branch(views)
        z1_all, offset = gather_with_grad(z1_BD)
        z2_all, _ = gather_with_grad(z2_BD)
        if self.cfg.memory:
            # Keys stand behind those of the batch, half behind each view: no anchor has its partner there.
            half_KD = self.keys.keys.to(z1_all.dtype, copy=True).chunk(2)
            z1_all, z2_all = torch.cat([z1_all, half_KD[0]]), torch.cat([z2_all, half_KD[1]])
        loss = nt_xent(z1_BD, z2_BD, self.cfg.temperature, z1_all=z1_all, z2_all=z2_all, offset=offset)
        if self.cfg.memory and self.training:
            with torch.no_grad():
                slow_BVD = self.slow(views).transpose(0, 1)  # image by image: the order for any number of processes
                self.keys.push_(all_gather(slow_BVD.flatten(0, 1)))
        return StepOutput(loss, agreement(z1_BD.detach(), z2_BD.detach()))

    def _finetune(self, batch: Batch) -> StepOutput:
        """Cross entropy of the labelled images (Sec. 2)."""
        logits_BK = self.network(batch.views["global"][0])
        labels_B = _labels(batch)
        loss = nn.functional.cross_entropy(logits_BK.float(), labels_B)
        return StepOutput(loss, {"simclr_v2/accuracy": (logits_BK.detach().argmax(1) == labels_B).float().mean()})

    def _distill(self, batch: Batch) -> StepOutput:
        """The student takes on the teacher's distribution (Eq. 2); with labels, their cross entropy too (Eq. 3)."""
        if self.teacher is None:
            raise ConfigError(MISSING)
        images = batch.views["global"][0]
        with torch.no_grad():
            teacher_BK = self.teacher(images)
        logits_BK = self.network(images)
        loss = soft_cross_entropy(logits_BK, teacher_BK, self.cfg.distill_temperature)
        if self.cfg.alpha < 1.0:
            loss = with_labels(logits_BK, _labels(batch), loss, self.cfg.alpha)
        decision_B = logits_BK.detach().argmax(1)
        metrics = {"simclr_v2/agreement": (decision_B == teacher_BK.argmax(1)).float().mean()}
        if batch.labels_B is not None:
            known_B = batch.labels_B != UNLABELLED
            right_B = (decision_B == batch.labels_B) & known_B
            metrics["simclr_v2/accuracy"] = right_B.sum() / known_B.sum().clamp_min(1)
        return StepOutput(loss, metrics)

    @classmethod
    def wants_classes(cls, cfg: MethodConfig) -> bool:
        """Fine-tuning and distillation have a classifier."""
        assert isinstance(cfg, SimCLRv2Config)
        return cfg.stage != "pretrain" and cfg.classes == 0

    def inherit(self, previous: Method) -> None:
        """Fine-tune from the pretrained encoder and head; distil from the fine-tuned network."""
        if not isinstance(previous, SimCLRv2):
            raise ConfigError(f"SimCLR v2 starts from its own earlier stages, not from {type(previous).__name__}.")
        pair = (previous.cfg.stage, self.cfg.stage)
        if pair == ("pretrain", "finetune"):
            layers = MODULES_PER_LAYER * self.cfg.finetune_from
            try:
                self.network.backbone.load_state_dict(previous.branch.backbone.state_dict())
                assert isinstance(previous.branch.head, nn.Sequential)
                self.network.neck.load_state_dict(nn.Sequential(*list(previous.branch.head)[:layers]).state_dict())
            except RuntimeError as error:
                raise ConfigError(
                    "fine-tuning goes on with the pretrained network, so encoder and head of both stages must be "
                    f"equal ({str(error).splitlines()[-1].strip()}). Name a smaller student for the last stage alone."
                ) from error
        elif pair[1] == "distill" and hasattr(previous, "network"):
            if previous.cfg.classes != self.cfg.classes:
                raise ConfigError(
                    f"the teacher knows {previous.cfg.classes} classes and the student shall know {self.cfg.classes}."
                )
            self.teacher = frozen_copy(previous.network).eval()
        else:
            raise ConfigError(
                f"a '{pair[1]}' stage cannot start from a '{pair[0]}' stage; the order is pretrain, finetune, distill."
            )

    def train(self, mode: bool = True) -> SimCLRv2:
        """Switch to training or evaluation; the teacher's BatchNorm always uses what it learned."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def after_optimizer_step(self, t: Progress) -> None:
        """Move the network that fills the memory."""
        if self.cfg.stage == "pretrain" and self.cfg.memory:
            ema_update_(self.slow, self.branch, self.cfg.momentum)

    def param_groups(self) -> list[ParamGroup]:
        """Neither decay nor LARS on biases and norms; no LARS on the classifier (google-research/simclr, model.py)."""
        groups = split_decay((n, p) for n, p in self.named_parameters() if n != "network.linear.weight")
        if self.cfg.stage != "pretrain":
            weight = cast(nn.Parameter, self.network.linear.weight)
            groups.append(ParamGroup(name="classifier", params=[weight], names=["network.linear.weight"], adapt=False))
        return groups

    def classify(self, images_BCHW: Tensor) -> Tensor | None:
        """Return class logits; None while there is no classifier."""
        if self.cfg.stage == "pretrain":
            return None
        logits_BK: Tensor = self.network(images_BCHW)
        return logits_BK

    @property
    def encoder(self) -> Encoder:
        """The stage's encoder: pretrained, fine-tuned, or the student's."""
        return self.branch.backbone if self.cfg.stage == "pretrain" else self.network.backbone


def _labels(batch: Batch) -> Tensor:
    if batch.labels_B is None:
        raise ConfigError("this stage learns from labels, and the images have none: use one folder per class.")
    return batch.labels_B
