"""Linear probe: a grid of learning rates and weight decays trained together over cached features.

All heads of the grid see the same minibatch, so their logits are one matrix product, and so is their gradient
(`linear_heads`); 13 learning rates share the reading, the standardising and the launches of one.
Shapes: N images, B of a minibatch, D width, G grid points, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import key, seed_of, uniforms
from imprint.evals.features import FeatureTable, extract_for
from imprint.evals.intervals import accuracy, class_shares
from imprint.evals.linear_augmented import fit_on_crops
from imprint.evals.linear_heads import Heads, HeadTrainer, count_hits, moments, take
from imprint.evals.linear_layers import columns, curve, every_layer
from imprint.evals.protocol import (
    EvalData,
    Protocol,
    ProtocolConfig,
    describe,
    labels_in_train_order,
    require_labels,
    timed,
)
from imprint.evals.report import Figure, Metric, Report
from imprint.evals.represent import pick_device
from imprint.evals.workspace import Workspace

if TYPE_CHECKING:
    from imprint.data.sources import Source

LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class LinearConfig(ProtocolConfig):
    """Settings of the probe.

    Attributes:
        lrs: learning rates of the grid, at a minibatch of 256 (scaled linearly with it).
        weight_decays: weight decays of the grid; every pair of the two is one head.
        epochs: passes over the training features.
        minibatch: features per step.
        momentum: of SGD.
        standardise: zero mean and unit variance per dimension over the training features (MAE's BatchNorm without
            affine, arXiv 2111.06377, Appendix A.1).
        held_out: share of each class of the training source on which the grid point is picked.
        augment: learn from random crops and flips, encoded anew every epoch, instead of the plain views.
        crop_scale: area share of those crops.
        each_layer: probe every block or stage by itself; the layer, too, is picked on the held-out part.
    """

    lrs: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = (0.0,)
    epochs: int = 50
    minibatch: int = 1024
    momentum: float = 0.9
    standardise: bool = True
    held_out: float = 0.1
    augment: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)
    each_layer: bool = False

    def __post_init__(self) -> None:
        """Check the grid and the split."""
        super().__post_init__()
        if not self.lrs or not self.weight_decays or min(self.lrs) <= 0 or min(self.weight_decays) < 0:
            raise ConfigError("the probe's grid needs positive learning rates and weight decays of 0 or more.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is a share between 0 and 1, got {self.held_out}.")
        if self.epochs < 1 or self.minibatch < 1:
            raise ConfigError("epochs and minibatch must be at least 1.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"crop_scale is a smallest and a largest share of the area, got {self.crop_scale}.")

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """The (learning rate, weight decay) pairs, G of them."""
        return tuple((lr, wd) for lr in self.lrs for wd in self.weight_decays)


def split_rows(
    labels_N: npt.NDArray[np.int64], held_out: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (fit rows, held-out rows), drawn per class by a key of (seed, row).

    Every class with two samples or more gives at least one to the held-out part and keeps at least one.

    Raises:
        DataError: when no class has two samples.
    """
    draw = uniforms(key(seed, "linear-held-out", np.arange(len(labels_N))), 1)[:, 0]
    order = np.lexsort((draw, labels_N))
    sorted_labels = labels_N[order]
    starts = np.flatnonzero(np.r_[True, sorted_labels[1:] != sorted_labels[:-1]])
    counts = np.diff(np.r_[starts, len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    take = np.minimum(np.maximum(np.rint(counts * held_out), 1), counts - 1)
    held = rank < np.repeat(take, counts)
    if not held.any():
        raise DataError("the training source has one image per class; a linear probe needs at least two of some class.")
    return np.sort(order[~held]), np.sort(order[held])


def fit_heads(features_ND: Tensor, labels_N: Tensor, rows_N: Tensor, classes: int, config: LinearConfig) -> Heads:
    """Train every head of the grid on `rows_N` by softmax cross-entropy, SGD with momentum and a cosine to 0.

    Features stay where they lie (memory map, GPU); the heads live where `labels_N` lies.
    """
    place, rows_N = labels_N.device, rows_N.to(features_ND.device)
    batch = min(config.minibatch, len(rows_N))
    trainer = new_trainer(features_ND, rows_N, classes, config, math.ceil(len(rows_N) / batch), batch, place)
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(seed_of(config.seed, "linear-order", epoch))
        order = rows_N[torch.randperm(len(rows_N), generator=generator).to(rows_N.device)]
        for rows in torch.split(order, batch):
            trainer.step(take(features_ND, rows, place), labels_N[rows.to(place)])
    return trainer.heads()


def new_trainer(
    features_ND: Tensor,
    rows_N: Tensor,
    classes: int,
    config: LinearConfig,
    per_epoch: int,
    batch: int,
    place: torch.device,
) -> HeadTrainer:
    """Return the untrained heads of the grid, with the moments of some rows and rates scaled to the minibatch."""
    depth = features_ND.shape[1]
    standard = moments(features_ND, rows_N) if config.standardise else (torch.zeros(depth), torch.ones(depth))
    grid = [(lr * batch / 256, decay) for lr, decay in config.grid]
    return HeadTrainer(grid, classes, standard, config.momentum, per_epoch * config.epochs, place)


def probe(
    train: FeatureTable,
    test: FeatureTable,
    config: LinearConfig,
    fit: Callable[[Tensor, Tensor, Tensor, int, LinearConfig], Heads] = fit_heads,
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Train the grid on tables of features; return metrics of the picked head on `test`, and the details of the choice.

    `fit` trains the heads on some rows; it has the arguments of `fit_heads`.

    Raises:
        DataError: for missing labels or classes that do not match.
    """
    test_labels = labels_in_train_order(train, test)
    if train.labels_N is None:
        raise DataError("the training features carry no labels.")
    place = pick_device(config.device, torch.nn.Identity())  # no parameters: an accelerator when there is one
    classes = max(len(train.classes), int(train.labels_N.max()) + 1)
    fit_rows, held_rows = (torch.from_numpy(r) for r in split_rows(train.labels_N, config.held_out, config.seed))
    features, test_features = (near(t.tensor, place) for t in (train, test))
    labels = torch.from_numpy(train.labels_N).to(place)
    heads = fit(features, labels, fit_rows, classes, config)
    held_hits, held_loss = count_hits(heads, features, labels, held_rows)
    held_top1 = 100.0 * held_hits.float().mean(1)
    best = min(range(len(config.grid)), key=lambda g: (-float(held_top1[g]), float(held_loss[g])))
    winner = heads.pick(best)
    target = torch.from_numpy(test_labels).to(place)
    metrics, per_class = score_head(winner, test_features, target, class_names(train, classes))
    metrics["held_out_top1"] = accuracy(int(held_hits[best].sum()), len(held_rows))
    grid = [
        {
            "lr": lr,
            "weight_decay": wd,
            "held_out_top1": round(float(held_top1[g]), 3),
            "held_out_loss": _finite(held_loss[g]),
        }
        for g, (lr, wd) in enumerate(config.grid)
    ]
    details = {
        "chosen": grid[best],
        "at_edge_of_grid": len(config.lrs) > 1 and config.grid[best][0] in (min(config.lrs), max(config.lrs)),
        "grid": grid,
        "fit_images": len(fit_rows),
        "held_out_images": len(held_rows),
        "per_class_top1": per_class,
    }
    return metrics, details


def score_head(
    head: Heads, features_ND: Tensor, labels_N: Tensor, names: Sequence[str]
) -> tuple[dict[str, Metric], dict[str, float]]:
    """Return top-1, top-5 (with more than five classes) and the loss of one head (G = 1), and top-1 by class name."""
    every, count = torch.arange(len(labels_N)), len(labels_N)
    hits1, loss = count_hits(head, features_ND, labels_N, every)
    metrics = {"top1": accuracy(int(hits1.sum()), count), "loss": Metric(value=float(loss[0]), n=count)}
    if len(names) > 5:
        hits5, _ = count_hits(head, features_ND, labels_N, every, top=5)
        metrics["top5"] = accuracy(int(hits5.sum()), count)
    return metrics, class_shares(hits1[0].cpu().numpy(), labels_N.cpu().numpy(), names)


def class_names(train: FeatureTable, classes: int) -> tuple[str, ...]:
    """Return a name for each of C classes, its number where the source gives none."""
    return train.classes or tuple(map(str, range(classes)))


class Linear(Protocol):
    """Linear probe on frozen features: the grid is picked on held-out training images and reported on test."""

    name: ClassVar[str] = "linear"
    Config: ClassVar[type[ProtocolConfig]] = LinearConfig
    needs_labels: ClassVar[bool] = True

    def run(self, encoder: Encoder, data: EvalData, config: LinearConfig | None = None) -> Report:
        """Return top-1 (main), top-5, the loss and the held-out top-1, with the whole grid in `details`."""
        config = config or LinearConfig()
        train_source, test_source = require_labels(self.name, data)
        cost: dict[str, float] = {"images": float(len(train_source) + len(test_source))}
        workspace = Workspace.open(self.name, encoder, data, config) if config.augment else Workspace(None)
        shown, widths = every_layer(encoder, config) if config.each_layer else (config, [])
        with timed(cost, "features_s"):
            train = extract_for(encoder, train_source, data.normalise, shown)
            test = extract_for(encoder, test_source, data.normalise, shown)
        figures: tuple[Figure, ...] = ()
        with timed(cost, "fit_s"):
            if config.each_layer:
                metrics, details, figures = _by_layer(columns(train, widths), columns(test, widths), config)
            elif config.augment:
                cost["images"] += float(len(train_source) * config.epochs)
                metrics, details = _augmented(encoder, train_source, train, test, data, config, workspace)
            else:
                metrics, details = probe(train, test, config)
        workspace.clear()
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(train_source), "test": describe(test_source)},
            metrics=metrics,
            main="top1",
            details=details,
            cost=cost,
            figures=figures,
        )


def _augmented(
    encoder: Encoder,
    source: Source,
    train: FeatureTable,
    test: FeatureTable,
    data: EvalData,
    config: LinearConfig,
    workspace: Workspace,
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Probe with heads that learn from crops; the plain views give the moments, and judge."""

    def fit(features: Tensor, labels: Tensor, rows: Tensor, classes: int, config: LinearConfig) -> Heads:
        def trainer_for(per_epoch: int, batch: int) -> HeadTrainer:
            return new_trainer(features, rows, classes, config, per_epoch, batch, labels.device)

        part = source.subset(train.index_N[rows.numpy()])
        return fit_on_crops(encoder, part, data.normalise, trainer_for, config, workspace)

    return probe(train, test, config, fit)


def _by_layer(
    train: Sequence[FeatureTable], test: Sequence[FeatureTable], config: LinearConfig
) -> tuple[dict[str, Metric], dict[str, Any], tuple[Figure, ...]]:
    """Probe every layer; the one with the best held-out top-1 is the headline."""
    found = [probe(a, b, config) for a, b in zip(train, test, strict=True)]
    rows = [
        {
            "layer": layer,
            "width": int(train[layer].features_ND.shape[1]),
            "top1": round(metrics["top1"].value, 3),
            "held_out_top1": round(metrics["held_out_top1"].value, 3),
            "lr": details["chosen"]["lr"],
        }
        for layer, (metrics, details) in enumerate(found)
    ]
    best = max(range(len(found)), key=lambda layer: (rows[layer]["held_out_top1"], layer))
    metrics, details = found[best]
    details = {"layer": best, "layers": rows, **details}
    caption = f"Top-1 of a linear probe on every layer; layer {best} is best on the held-out images."
    return metrics, details, (Figure(name="layers", caption=caption, picture=curve(rows)),)


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 5) if math.isfinite(number) else None


def near(features_ND: Tensor, place: torch.device) -> Tensor:
    """Return the features on the device when they fit there with room to spare, else where they are."""
    if place.type != "cuda":
        return features_ND if place.type == "cpu" else features_ND.to(place)
    free, _ = torch.cuda.mem_get_info(place)
    return features_ND.to(place) if features_ND.numel() * 4 < 0.5 * free else features_ND
