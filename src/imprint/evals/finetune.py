"""Fine-tuning: the whole encoder trained further with a linear classifier on labelled images.

The recipe is that of BEiT and MAE (arXiv 2111.06377, App. A.1, Table 9): AdamW, learning rates that fall from the last
block to the first, stochastic depth, mixup, CutMix, label smoothing. RandAugment and random erasing of that table are
not part of it: the views are random resized crops and flips.

Shapes: B images, K classes.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from imprint.backbones.build import build_encoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.layer_decay import layer_scales
from imprint.backbones.timm_encoder import TimmEncoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.progress import Epochs
from imprint.core.rng import key, seed_of, uniforms
from imprint.core.schedules import cosine
from imprint.data.batch import Batch
from imprint.data.loader import Loader, sweep
from imprint.data.sources import Source, spread
from imprint.data.view_recipes import probe_views
from imprint.evals.intervals import accuracy
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, require_labels, timed
from imprint.evals.report import Metric, Report
from imprint.evals.represent import evaluation_view, pick_device, pick_precision, represent
from imprint.evals.training import Plan, fit
from imprint.evals.workspace import Workspace
from imprint.ops.mixing import cutmix, mixup, smoothed_one_hot


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(ProtocolConfig):
    """Settings of fine-tuning; defaults are MAE's for ViT-B (arXiv 2111.06377, Table 9) but for what is said above.

    Attributes:
        epochs: passes over the training images.
        minibatch: images per step.
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
        limit: use this many training images, spread over the source; 0 for all.
    """

    epochs: int = 100
    minibatch: int = 1024
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


class Classifier(nn.Module):
    """Encoder and a linear map to classes: (B, C, H, W) -> (B, K)."""

    def __init__(self, encoder: Encoder, classes: int, config: FinetuneConfig, probe: Tensor) -> None:
        super().__init__()
        self.encoder, self.tokens, self.layers = encoder, config.tokens, config.layers
        width = represent(encoder, probe, config.tokens, config.layers).shape[1]
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(
            self.linear.weight, std=2e-5
        )  # MAE's public code: the first steps leave the encoder alone
        nn.init.zeros_(self.linear.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(represent(self.encoder, images_BCHW, self.tokens, self.layers))
        return logits


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
            trainable_copy(encoder, config.drop_path), len(train.classes), config,
            torch.zeros(2, encoder.channels, size, size),
        ).to(device)  # fmt: skip
        with timed(cost, "train_s"):
            judged, curve = train_classifier(model, train, data, config, device, size, workspace)
        with timed(cost, "test_s"):
            metrics = score(judged, test, data, config, device, size)
        workspace.clear()
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(train), "test": describe(test)},
            metrics=metrics,
            main="top1",
            details={"train_loss": curve, "settings": dataclasses.asdict(config)},
            cost=cost,
        )


def trainable_copy(encoder: Encoder, drop_path: float) -> Encoder:
    """Return a copy whose parameters all take gradients, with stochastic depth at the given rate where timm has it."""
    fixed: set[str] = set()
    if isinstance(encoder, TimmEncoder):
        twin: Encoder = build_encoder(**{**encoder.config, "drop_path": drop_path})
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
    return twin.train()


def train_classifier(
    model: Classifier,
    train: Source,
    data: EvalData,
    config: FinetuneConfig,
    device: torch.device,
    size: int,
    workspace: Workspace | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train, and return the network to judge (the averaged one with `ema`) and the mean loss of every epoch."""
    batch = min(config.minibatch, len(train))

    def loss_of(item: Batch, step: int) -> Tensor:
        images, targets = mixed(item.prepared(device, data.normalise), len(train.classes), config, step)
        logits: Tensor = model(images)
        return nn.functional.cross_entropy(logits.float(), targets)

    with Loader(
        train, probe_views(size, scale=config.crop_scale), batch_size=batch, seed=config.seed, workers=config.workers,
        pin_memory=device.type == "cuda",
    ) as loader:  # fmt: skip
        plan = Plan(
            name="finetune",
            steps=loader.steps_per_epoch * config.epochs,
            per_epoch=loader.steps_per_epoch,
            lr=cosine(config.lr * batch / 256, 0.0, warmup=Epochs(min(config.warmup, config.epochs / 2))),
            clip=config.clip,
            ema=config.ema,
            seed=config.seed,
        )
        dtype = pick_precision(config.precision, device)
        return fit(
            model, adamw(model, config), loader.batches, loss_of, plan, device=device, dtype=dtype, workspace=workspace
        )


def adamw(model: Classifier, config: FinetuneConfig) -> torch.optim.Optimizer:
    """Return AdamW with a group for every pair of rate and decay; biases, norms, tokens and positions do not decay."""
    scales = layer_scales(model, config.layer_decay) if config.layer_decay < 1 else {}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(("_token", "pos_embed"))
            groups.setdefault((scales.get(id(parameter), 1.0), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "lr_scale": scale, "weight_decay": config.weight_decay * decays}
            for (scale, decays), params in groups.items()
        ],
        lr=0.0,
    )


def mixed(batch: Batch, classes: int, config: FinetuneConfig, step: int) -> tuple[Tensor, Tensor]:
    """Return images and target distributions of a batch, mixed as the configuration says; drawn by (seed, step)."""
    images = batch.views["global"][0]
    if batch.labels_B is None:
        raise DataError("fine-tuning learns from labels, and this batch has none.")
    targets = smoothed_one_hot(batch.labels_B, classes, config.smoothing)
    kinds = [name for name in ("mixup", "cutmix") if getattr(config, name) > 0]
    if not kinds:
        return images, targets
    draws = uniforms(key(config.seed, "mix", step), 3)
    kind = kinds[int(draws[0] * len(kinds))]
    alpha = getattr(config, kind)
    share = float(np.random.default_rng(seed_of(config.seed, "beta", step)).beta(alpha, alpha))
    partner = torch.arange(len(images) - 1, -1, -1, device=images.device)  # batches come shuffled
    if kind == "mixup":
        return mixup(images, targets, partner, share)
    return cutmix(images, targets, partner, share, (float(draws[1]), float(draws[2])))


@torch.no_grad()
def score(
    model: nn.Module, test: Source, data: EvalData, config: FinetuneConfig, device: torch.device, size: int
) -> dict[str, Metric]:
    """Return top-1, top-5 (with more than five classes) and cross-entropy on the plain views of the test source."""
    model.eval()
    dtype = pick_precision(config.precision, device)
    hits1 = hits5 = count = 0
    loss = 0.0
    for batch in sweep(test, evaluation_view(size), batch_size=config.batch_size, workers=config.workers):
        ready = batch.prepared(device, data.normalise)
        if ready.labels_B is None:
            raise DataError(f"the test source '{test.spec}' has no labels.")
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(ready.views["eval"][0]).float()
        own = logits.gather(1, ready.labels_B[:, None])
        above = (logits >= own).sum(1)  # the rank of the label, ties counted against it
        hits1 += int((above == 1).sum())
        hits5 += int((above <= 5).sum())
        loss += float(nn.functional.cross_entropy(logits, ready.labels_B, reduction="sum"))
        count += len(ready)
    if count == 0:
        raise DataError(f"none of the images of the test source '{test.spec}' could be read.")
    metrics = {"top1": accuracy(hits1, count), "loss": Metric(value=loss / count, n=count)}
    if len(test.classes) > 5:
        metrics["top5"] = accuracy(hits5, count)
    return metrics
