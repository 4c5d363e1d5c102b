"""Linear probe: a grid of learning rates and weight decays trained together over cached features.

All heads of the grid see the same minibatch, so their logits are one matrix product, x_BD @ W_D(GC), and so is their
gradient; 13 learning rates share the reading, the standardising and the launches of one.
Shapes: N images, B of a minibatch, D width, G grid points, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import key, seed_of, uniforms
from imprint.evals.features import FeatureTable, extract_for
from imprint.evals.intervals import accuracy
from imprint.evals.protocol import (
    EvalData,
    Protocol,
    ProtocolConfig,
    describe,
    labels_in_train_order,
    require_labels,
    timed,
)
from imprint.evals.report import Metric, Report
from imprint.evals.represent import pick_device

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
    """

    lrs: tuple[float, ...] = LEARNING_RATES
    weight_decays: tuple[float, ...] = (0.0,)
    epochs: int = 50
    minibatch: int = 1024
    momentum: float = 0.9
    standardise: bool = True
    held_out: float = 0.1

    def __post_init__(self) -> None:
        """Check the grid and the split."""
        super().__post_init__()
        if not self.lrs or not self.weight_decays or min(self.lrs) <= 0 or min(self.weight_decays) < 0:
            raise ConfigError("the probe's grid needs positive learning rates and weight decays of 0 or more.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is a share between 0 and 1, got {self.held_out}.")
        if self.epochs < 1 or self.minibatch < 1:
            raise ConfigError("epochs and minibatch must be at least 1.")

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """The (learning rate, weight decay) pairs, G of them."""
        return tuple((lr, wd) for lr in self.lrs for wd in self.weight_decays)


@dataclass(frozen=True)
class Heads:
    """G linear classifiers over standardised features: logits = ((x - mean) * scale) @ weight[:, g] + bias[g].

    Attributes:
        weight_DGC: float32.
        bias_GC: float32.
        mean_D: float32.
        scale_D: float32.
    """

    weight_DGC: Tensor
    bias_GC: Tensor
    mean_D: Tensor
    scale_D: Tensor

    def logits(self, x_BD: Tensor) -> Tensor:
        """Return logits (B, G, C) of raw features."""
        depth, grid, classes = self.weight_DGC.shape
        x = (x_BD.to(self.mean_D) - self.mean_D) * self.scale_D
        return torch.addmm(self.bias_GC.view(-1), x, self.weight_DGC.view(depth, -1)).view(-1, grid, classes)

    def pick(self, g: int) -> Heads:
        """Return the one head `g` (G = 1)."""
        return Heads(
            self.weight_DGC[:, g : g + 1].contiguous(), self.bias_GC[g : g + 1].contiguous(), self.mean_D, self.scale_D
        )


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


def moments(features_ND: Tensor, rows_N: Tensor, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """Return mean (D) and 1 / sqrt(variance + 1e-6) (D) over some rows, float32; sums of chunks are kept in float64."""
    total = features_ND.new_zeros(features_ND.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for rows in torch.split(rows_N, chunk):
        total += features_ND[rows].sum(0)
    mean = (total / len(rows_N)).float()
    for rows in torch.split(rows_N, chunk):
        squares += (features_ND[rows] - mean).square_().sum(0)
    return mean, (squares / len(rows_N) + 1e-6).rsqrt().float()


def fit_heads(features_ND: Tensor, labels_N: Tensor, rows_N: Tensor, classes: int, config: LinearConfig) -> Heads:
    """Train every head of the grid on `rows_N` by softmax cross-entropy, SGD with momentum and a cosine to 0.

    The gradient is written out: with P the softmax and Y the one-hot labels, dL/dW = x^T (P - Y) / B. Weights start
    at 0; the problem is convex, so no draw of weights is needed. Features stay where they lie (memory map, GPU); the
    heads live where `labels_N` lies.
    """
    place = labels_N.device
    depth, grid = features_ND.shape[1], config.grid
    if config.standardise:
        mean, scale = (m.to(place) for m in moments(features_ND, rows_N.to(features_ND.device)))
    else:
        mean, scale = torch.zeros(depth, device=place), torch.ones(depth, device=place)
    # Grid points vary fastest: softmax and its sums then run over whole vectors, however few the classes.
    weight = torch.zeros(depth, classes, len(grid), device=place)
    bias = torch.zeros(classes, len(grid), device=place)
    weight_m, bias_m = torch.zeros_like(weight), torch.zeros_like(bias)
    batch = min(config.minibatch, len(rows_N))
    total = math.ceil(len(rows_N) / batch) * config.epochs
    peak_G = torch.tensor([lr * batch / 256 for lr, _ in grid], device=place)
    decay_G = torch.tensor([wd for _, wd in grid], device=place)
    decays = any(wd > 0 for _, wd in grid)
    flat, flat_m = weight.view(depth, -1), weight_m.view(depth, -1)
    step = 0
    for epoch in range(config.epochs):
        generator = torch.Generator().manual_seed(seed_of(config.seed, "linear-order", epoch))
        order = rows_N[torch.randperm(len(rows_N), generator=generator).to(rows_N.device)]
        for rows in torch.split(order, batch):
            x = (features_ND[rows.to(features_ND.device)].to(place) - mean).mul_(scale)
            y = labels_N[rows.to(place)]
            logits = torch.addmm(bias.view(-1), x, flat).view(-1, classes, len(grid))
            p = logits.sub_(logits.amax(1, keepdim=True)).exp_()
            p.mul_(p.sum(1, keepdim=True).reciprocal_())
            own = y[:, None, None].expand(-1, 1, len(grid))
            p.scatter_add_(1, own, p.new_full((1, 1, 1), -1.0).expand_as(own)).mul_(1.0 / len(y))
            rate = peak_G * (-0.5 * (1.0 + math.cos(math.pi * step / total)))
            flat_m.mul_(config.momentum).addmm_(x.t(), p.view(len(y), -1))
            bias_m.mul_(config.momentum).add_(p.sum(0))
            if decays:
                weight_m.addcmul_(weight, decay_G)
            weight.addcmul_(weight_m, rate)
            bias.addcmul_(bias_m, rate)
            step += 1
    weight, bias = weight.transpose(1, 2).contiguous(), bias.t().contiguous()
    return Heads(weight, bias, mean, scale)


def count_hits(
    heads: Heads, features_ND: Tensor, labels_N: Tensor, rows_N: Tensor, top: int = 1, chunk: int = 8192
) -> tuple[Tensor, Tensor]:
    """Return (hits_GN bool, loss_G): whether the label is among the first `top` classes, and the mean cross-entropy.

    A head whose weights are not finite hits nothing and has an infinite loss.
    """
    hits, loss = [], torch.zeros(heads.weight_DGC.shape[1], device=labels_N.device)
    for rows in torch.split(rows_N, chunk):
        logits = heads.logits(features_ND[rows.to(features_ND.device)])
        own = logits.gather(2, labels_N[rows.to(labels_N.device)][:, None, None].expand(-1, logits.shape[1], 1))
        # The rank of the label, ties counted against it: sound for NaN, constant and saturated logits alike.
        above = (logits >= own).sum(2)
        hits.append(((above <= top) & (above > 0)).t())
        loss += (logits.logsumexp(2) - own[..., 0]).sum(0)
    mean = torch.nan_to_num(loss / len(rows_N), nan=math.inf, posinf=math.inf)
    return torch.cat(hits, 1), mean


def probe(train: FeatureTable, test: FeatureTable, config: LinearConfig) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Train the grid on tables of features; return metrics of the picked head on `test`, and the details of the choice.

    Raises:
        DataError: for missing labels or classes that do not match.
    """
    test_labels = labels_in_train_order(train, test)
    if train.labels_N is None:
        raise DataError("the training features carry no labels.")
    place = pick_device(config.device, torch.nn.Identity())  # no parameters: an accelerator when there is one
    classes = max(len(train.classes), int(train.labels_N.max()) + 1)
    fit_rows, held_rows = (torch.from_numpy(r) for r in split_rows(train.labels_N, config.held_out, config.seed))
    features, test_features = (_near(t.tensor, place) for t in (train, test))
    labels = torch.from_numpy(train.labels_N).to(place)
    heads = fit_heads(features, labels, fit_rows, classes, config)
    held_hits, held_loss = count_hits(heads, features, labels, held_rows)
    held_top1 = 100.0 * held_hits.float().mean(1)
    best = min(range(len(config.grid)), key=lambda g: (-float(held_top1[g]), float(held_loss[g])))
    winner = heads.pick(best)
    target, every = torch.from_numpy(test_labels).to(place), torch.arange(len(test_labels))
    hits1, loss = count_hits(winner, test_features, target, every)
    hits5, _ = count_hits(winner, test_features, target, every, top=5)
    metrics = {
        "top1": accuracy(int(hits1.sum()), len(test_labels)),
        "held_out_top1": accuracy(int(held_hits[best].sum()), len(held_rows)),
        "loss": Metric(value=float(loss[0]), n=len(test_labels)),
    }
    if classes > 5:
        metrics["top5"] = accuracy(int(hits5.sum()), len(test_labels))
    per_class = np.bincount(test_labels, weights=hits1[0].cpu().numpy(), minlength=classes)
    sizes = np.bincount(test_labels, minlength=classes)
    names = train.classes or tuple(map(str, range(classes)))
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
        "per_class_top1": {
            str(name): round(100.0 * float(h) / int(n), 3)
            for name, h, n in zip(names, per_class, sizes, strict=True)
            if n
        },
    }
    return metrics, details


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
        with timed(cost, "features_s"):
            train = extract_for(encoder, train_source, data.normalise, config)
            test = extract_for(encoder, test_source, data.normalise, config)
        with timed(cost, "fit_s"):
            metrics, details = probe(train, test, config)
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(train_source), "test": describe(test_source)},
            metrics=metrics,
            main="top1",
            details=details,
            cost=cost,
        )


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return round(number, 5) if math.isfinite(number) else None


def _near(features_ND: Tensor, place: torch.device) -> Tensor:
    """Return the features on the device when they fit there with room to spare, else where they are."""
    if place.type != "cuda":
        return features_ND if place.type == "cpu" else features_ND.to(place)
    free, _ = torch.cuda.mem_get_info(place)
    return features_ND.to(place) if features_ND.numel() * 4 < 0.5 * free else features_ND
