"""Fine-tuning: the whole encoder trained further with a linear classifier on labelled images.

The recipe is that of BEiT and MAE (arXiv 2111.06377, App. A.1, Table 9): AdamW, learning rates that fall from the last
block to the first, stochastic depth, RandAugment, random erasing, mixup, CutMix, label smoothing. `classifier` holds
what is done with a batch.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from dataclasses import dataclass
from typing import ClassVar

import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.freezing import freeze_first
from imprint.backbones.layer_decay import layer_scales, parameter_groups
from imprint.backbones.timm_encoder import TimmEncoder
from imprint.core.errors import ConfigError
from imprint.core.rng import seed_of
from imprint.data.sources import spread
from imprint.evals.classifier import Classifier, score, train_classifier
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, require_labels, timed
from imprint.evals.report import Report
from imprint.evals.represent import pick_device
from imprint.evals.workspace import Workspace

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ProtocolConfig):
    """Settings of fine-tuning; defaults are MAE's for ViT-B (arXiv 2111.06377, App. A.1, Table 9).

    Attributes:
        epochs: passes over the training images.
        minibatch: images per step.
        accumulate: parts that a step is computed in, so that a large one fits into memory.
        freeze: blocks (stages of a hierarchical encoder), counted from the input, that stay as they are, with all that
            comes before them; 0 trains everything.
        lr: peak learning rate at a minibatch of 256, scaled linearly with it.
        layer_decay: factor on the rate from each block to the one below; 1 for none (and for encoders without blocks).
        weight_decay: of matrices.
        warmup: epochs of linear warm-up.
        clip: largest norm of the gradient, 0 for any.
        drop_path: stochastic depth rate at the last block.
        mixup: alpha of its Beta distribution, 0 for none.
        cutmix: alpha of its Beta distribution, 0 for none; with both, each batch takes one of them.
        smoothing: label smoothing.
        ema: momentum of averaged weights, which are then the ones judged; 0 for none.
        crop_scale: area share of the training crops.
        rand_augment: magnitude of RandAugment (arXiv 1909.13719, two operations of fifteen) in [0, 10]; 0 for none.
        rand_augment_spread: standard deviation of that magnitude.
        erasing: probability of random erasing (arXiv 1708.04896) by noise.
        limit: use this many training images, spread over the source; 0 for all.
    """

    epochs: int = 100
    minibatch: int = 1024
    accumulate: int = 1
    freeze: int = 0
    lr: float = 5e-4
    layer_decay: float = 0.65
    weight_decay: float = 0.05
    warmup: float = 5.0
    clip: float = 0.0
    drop_path: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    ema: float = 0.0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    rand_augment: float = 9.0
    rand_augment_spread: float = 0.5
    erasing: float = 0.25
    limit: int = 0

    def __post_init__(self) -> None:
        """Check what no single type can say."""
        super().__post_init__()
        if self.epochs < 1 or self.minibatch < 1 or self.lr <= 0 or self.limit < 0:
            raise ConfigError("fine-tuning needs at least one epoch, one image per step and a positive --lr.")
        if not (0 < self.layer_decay <= 1 and 0 <= self.smoothing < 1 and 0 <= self.ema < 1):
            raise ConfigError("layer_decay lies in (0, 1], smoothing and ema in [0, 1).")
        if min(self.mixup, self.cutmix, self.warmup, self.clip, self.weight_decay) < 0:
            raise ConfigError("mixup, cutmix, warmup, clip and weight_decay must be 0 or more.")
        if self.accumulate < 1 or self.freeze < 0:
            raise ConfigError("accumulate counts the parts of a step, 1 or more; freeze counts blocks, 0 or more.")
        if not (0 <= self.rand_augment <= 10 and self.rand_augment_spread >= 0 and 0 <= self.erasing <= 1):
            raise ConfigError("rand_augment lies in [0, 10], its spread is 0 or more, and erasing is a probability.")


class Finetune(Protocol):
    """Train encoder and classifier on `train`, score them on `test` once, at the end."""

    name: ClassVar[str] = "finetune"
    Config: ClassVar[type[ProtocolConfig]] = FinetuneConfig
    needs_labels: ClassVar[bool] = True

    def run(self, encoder: Encoder, data: EvalData, config: FinetuneConfig | None = None) -> Report:
        """Return top-1 (main), top-5 and the loss on the test source; the given encoder stays as it is.

        Raises:
            HealthError: when the loss stops being finite.
        """
        config = config or FinetuneConfig()
        train, test = require_labels(self.name, data)
        test = test.aligned(train.classes)
        if config.limit and config.limit < len(train):
            train = train.subset(spread(len(train), config.limit))
        workspace = Workspace.open(
            self.name, encoder, EvalData(train=train, test=test, normalise=data.normalise), config
        )
        cost: dict[str, float] = {"images": float(len(train) * config.epochs + len(test))}
        device = pick_device(config.device, encoder)
        torch.manual_seed(seed_of(config.seed, "finetune"))
        size = config.image_size or encoder.image_size
        model = Classifier(
            trainable_copy(encoder, config.drop_path, config.freeze), len(train.classes), config,
            torch.zeros(2, encoder.channels, size, size),
        ).to(device)  # fmt: skip
        optimizer = adamw(model, config)
        with timed(cost, "train_s"):
            judged, curve = train_classifier(model, optimizer, train, data.normalise, config, device, size, workspace)
        with timed(cost, "test_s"):
            metrics, by_class = score(judged, test, data.normalise, config, device, size)
        workspace.clear()
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(train), "test": describe(test)},
            metrics=metrics,
            main="top1",
            details={"train_loss": curve, **by_class, "settings": dataclasses.asdict(config)},
            cost=cost,
        )


def trainable_copy(encoder: Encoder, drop_path: float, freeze: int = 0) -> Encoder:
    """Return a copy to train: parameters take gradients, stochastic depth has the given rate where timm has it.

    Args:
        encoder: stays as it is.
        drop_path: rate at the last block.
        freeze: blocks or stages from the input that take no gradient, with everything before them; they also run as
            in evaluation (BatchNorm's statistics stay, nothing is dropped), whatever mode the copy is put in.

    Raises:
        ConfigError: for an encoder without parameters or blocks, or fewer of them than are to be frozen.
    """
    if isinstance(encoder, DualEncoder):
        encoder = encoder.vision  # texts have no part in it
    fixed: set[str] = set()
    if isinstance(encoder, TimmEncoder):
        twin: Encoder = _rebuilt(encoder, drop_path)
        fixed = {
            name for name, parameter in twin.named_parameters() if not parameter.requires_grad
        }  # sin-cos positions
        twin.load_state_dict(encoder.state_dict())
    else:
        twin = copy.deepcopy(encoder)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name not in fixed)
    if not any(p.requires_grad for p in twin.parameters()):
        raise ConfigError(f"'{encoder.name}' has nothing to fine-tune; judge it by kNN or the linear probe.")
    if freeze:
        freeze_first(twin, freeze)
    return twin.train()


def _rebuilt(encoder: TimmEncoder, drop_path: float) -> Encoder:
    """Return the same architecture with another rate of stochastic depth, or with its own where timm knows no rate."""
    try:
        return build_encoder(**{**encoder.config, "drop_path": drop_path})
    except ConfigError:
        twin = build_encoder(**encoder.config)
        _logger.warning("'%s' knows no stochastic depth; it is trained without --drop-path", encoder.name)
        return twin


def adamw(model: Classifier, config: FinetuneConfig) -> torch.optim.Optimizer:
    """Return AdamW with a group for every pair of rate and decay; biases, norms, tokens and positions do not decay."""
    scales = layer_scales(model, config.layer_decay) if config.layer_decay < 1 else {}
    groups = parameter_groups(model, config.weight_decay, lambda parameter: scales.get(id(parameter), 1.0))
    return torch.optim.AdamW(groups, lr=0.0)
