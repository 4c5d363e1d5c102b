"""An encoder with a linear map to classes: how a batch becomes its input, how it is trained, how it is scored.

Shapes: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder
from imprint.core.errors import DataError
from imprint.core.progress import Epochs
from imprint.core.rng import key, seed_of, uniforms
from imprint.core.schedules import cosine
from imprint.data.batch import Batch, Normalise
from imprint.data.batch_augment import erased, kept_share, rand_augmented
from imprint.data.loader import Loader, sweep
from imprint.data.sources import Source
from imprint.data.view_recipes import probe_views
from imprint.evals.intervals import accuracy, class_shares
from imprint.evals.report import Metric
from imprint.evals.represent import evaluation_view, pick_precision, represent
from imprint.evals.training import Plan, fit
from imprint.evals.workspace import Workspace
from imprint.ops.mixing import cutmix, mixup, smoothed_one_hot

if TYPE_CHECKING:
    from imprint.evals.finetune import FinetuneConfig


class Classifier(nn.Module):
    """Encoder and a linear map to classes: (B, C, H, W) -> (B, K)."""

    def __init__(self, encoder: Encoder, classes: int, config: FinetuneConfig, probe: Tensor) -> None:
        super().__init__()
        self.encoder, self.tokens, self.layers = encoder, config.tokens, config.layers
        with torch.no_grad():
            width = represent(encoder.eval(), probe, config.tokens, config.layers).shape[1]
        encoder.train()
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(
            self.linear.weight, std=2e-5
        )  # MAE's public code: the first steps leave the encoder alone
        nn.init.zeros_(self.linear.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.linear(represent(self.encoder, images_BCHW, self.tokens, self.layers))
        return logits


def train_classifier(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Source,
    normalise: Normalise,
    config: FinetuneConfig,
    device: torch.device,
    size: int,
    workspace: Workspace | None = None,
) -> tuple[nn.Module, list[float]]:
    """Train, and return the network to judge (the averaged one with `ema`) and the mean loss of every epoch."""
    batch = min(config.minibatch, len(train))

    def loss_of(item: Batch, step: int) -> Iterator[Tensor]:
        images, targets = augmented(item, len(train.classes), normalise, config, step, device)
        rows = -(-len(images) // config.accumulate)
        for part, wanted in zip(images.split(rows), targets.split(rows), strict=True):
            logits: Tensor = model(part)
            yield nn.functional.cross_entropy(logits.float(), wanted, reduction="sum") / len(images)

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
        return fit(model, optimizer, loader.batches, loss_of, plan, device=device, dtype=dtype, workspace=workspace)


def augmented(
    batch: Batch, classes: int, normalise: Normalise, config: FinetuneConfig, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return normalised images and target distributions of a batch from the loader, in the order of the public recipe.

    RandAugment on 8-bit pixels, normalisation, random erasing, then mixing; all drawn by (seed, step).
    """
    index_B = batch.index_B.numpy()
    ready = batch.map(lambda x: x.to(device, non_blocking=True))
    images, labels = ready.views["global"][0], ready.labels_B
    if labels is None:
        raise DataError("fine-tuning learns from labels, and this batch has none.")
    if config.rand_augment > 0:
        images = rand_augmented(
            images, index_B, config.seed, step, config.rand_augment, config.rand_augment_spread, normalise
        )
    images = normalise(images)
    if config.erasing > 0:
        images = erased(images, index_B, config.seed, step, config.erasing)
    return mixed(images, labels, classes, config, step)


def mixed(images: Tensor, labels_B: Tensor, classes: int, config: FinetuneConfig, step: int) -> tuple[Tensor, Tensor]:
    """Return images and target distributions, mixed as the configuration says; drawn by (seed, step)."""
    targets = smoothed_one_hot(labels_B, classes, config.smoothing)
    kinds = [name for name in ("mixup", "cutmix") if getattr(config, name) > 0]
    if not kinds:
        return images, targets
    draws = uniforms(key(config.seed, "mix", step), 3)
    kind = kinds[int(draws[0] * len(kinds))]
    alpha = getattr(config, kind)
    share = kept_share(seed_of(config.seed, "beta", step), alpha)
    partner = torch.arange(len(images) - 1, -1, -1, device=images.device)  # batches come shuffled
    if kind == "mixup":
        return mixup(images, targets, partner, share)
    return cutmix(images, targets, partner, share, (float(draws[1]), float(draws[2])))


@torch.no_grad()
def score(
    model: nn.Module, test: Source, normalise: Normalise, config: FinetuneConfig, device: torch.device, size: int
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Return top-1, top-5 (with more than five classes) and cross-entropy on the plain views, and top-1 by class."""
    model.eval()
    dtype = pick_precision(config.precision, device)
    ranks, labels, loss = [], [], 0.0
    for batch in sweep(test, evaluation_view(size), batch_size=config.batch_size, workers=config.workers):
        ready = batch.prepared(device, normalise)
        if ready.labels_B is None:
            raise DataError(f"the test source '{test.spec}' has no labels.")
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = model(ready.views["eval"][0]).float()
        own = logits.gather(1, ready.labels_B[:, None])
        ranks.append((logits >= own).sum(1))  # of the label, ties counted against it; 0 for NaN, which is no hit
        labels.append(ready.labels_B)
        loss += float(nn.functional.cross_entropy(logits, ready.labels_B, reduction="sum"))
    if not ranks:
        raise DataError(f"none of the images of the test source '{test.spec}' could be read.")
    rank, label = torch.cat(ranks).cpu(), torch.cat(labels).cpu().numpy()
    hits = rank == 1
    metrics = {
        "top1": accuracy(int(hits.sum()), len(rank)),
        "loss": Metric(value=loss / len(rank), n=len(rank)),
    }
    if len(test.classes) > 5:
        metrics["top5"] = accuracy(int(((rank > 0) & (rank <= 5)).sum()), len(rank))
    return metrics, {"per_class_top1": class_shares(hits.numpy(), label, test.classes)}
