"""Logistic regression on frozen features: a whole path of penalties solved together by L-BFGS.

Shapes: N images, B of a chunk, D width, G penalties, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.evals.features import FeatureTable, extract_for
from imprint.evals.intervals import accuracy
from imprint.evals.linear import class_names, near, score_head, split_rows
from imprint.evals.linear_heads import Heads, count_hits, moments, take
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
from imprint.evals.workspace import Workspace
from imprint.ops.lbfgs import minimise
from imprint.ops.products import rows_by_rows

COSTS = tuple(10.0 ** (-6 + 11 * i / 44) for i in range(45))
_COARSE = 4
_STATE_BYTES = 1 << 30
_ABSENT = -30.0
_CHUNK = 1024  # rows; their logits stay in cache


@dataclass(frozen=True, kw_only=True)
class LogRegConfig(ProtocolConfig):
    """Settings; the path is that of DINOv2's public code (45 costs from 1e-6 to 1e5, 1000 iterations).

    Attributes:
        costs: C of C * (sum of cross-entropies) + ||W||^2 / 2, as scikit-learn counts it; biases are free.
        search: solve every fourth cost first and then the ones around the best (CLIP, arXiv 2103.00020, App. A.3,
            searches so too); False solves all of them.
        max_iter: steps of L-BFGS per cost.
        tolerance: largest entry of the gradient, of the objective divided by C N, at which a cost counts as solved.
        standardise: zero mean and unit variance per dimension over the training features.
        held_out: share of each class of the training source on which the cost is picked, before all of it is fitted.
    """

    costs: tuple[float, ...] = COSTS
    search: bool = True
    max_iter: int = 1000
    tolerance: float = 1e-4
    standardise: bool = True
    held_out: float = 0.1

    def __post_init__(self) -> None:
        """Check the path and the split."""
        super().__post_init__()
        if not self.costs or min(self.costs) <= 0:
            raise ConfigError("logistic regression needs at least one cost, all of them above 0.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out is a share between 0 and 1, got {self.held_out}.")
        if self.max_iter < 1 or self.tolerance <= 0:
            raise ConfigError("max_iter must be at least 1 and tolerance above 0.")


@dataclass(frozen=True)
class Solved:
    """Classifiers of several costs.

    Attributes:
        heads: G of them.
        steps: of L-BFGS, per cost.
        converged: whether the tolerance was reached, per cost.
    """

    heads: Heads
    steps: tuple[int, ...]
    converged: tuple[bool, ...]


def solve(
    features_ND: Tensor,
    labels_N: Tensor,
    rows_N: Tensor,
    classes: int,
    costs: Sequence[float],
    config: LogRegConfig,
    start: Heads | None = None,
) -> Solved:
    """Fit multinomial logistic regressions on some rows, one per cost.

    minimise  mean_i CE(W x_i + b, y_i) + ||W||^2 / (2 C N)  over W and b, for every C of `costs`; all costs share the
    passes over the features. Classes without a row get a bias of -30 and no weights.

    Args:
        features_ND: raw features, wherever they lie (memory map, GPU).
        labels_N: int64 in [0, C), where the classifiers shall live.
        rows_N: rows to fit.
        classes: C.
        costs: see `LogRegConfig`.
        config: tolerance and the like.
        start: one head (G = 1) to start from; None starts at 0.

    Raises:
        DataError: for rows of a single class.
    """
    place, depth = labels_N.device, features_ND.shape[1]
    rows_N = rows_N.to(features_ND.device)
    plain = (torch.zeros(depth), torch.ones(depth))
    mean, scale = (m.to(place) for m in (moments(features_ND, rows_N) if config.standardise else plain))
    present, own_N = labels_N[rows_N.to(place)].unique(return_inverse=True)
    if len(present) < 2:
        raise DataError("all training images are of one class; there is nothing to tell apart.")
    count, width = len(rows_N), len(present) * depth
    cost_G = torch.tensor(costs, dtype=torch.float64, device=place)

    def evaluate(x_AP: Tensor, which_A: Tensor) -> tuple[Tensor, Tensor]:
        heads, kinds = len(x_AP), len(present)
        weight = x_AP[:, :width].reshape(heads * kinds, depth)
        bias = x_AP[:, width:].reshape(heads * kinds, 1)
        penalty_A = 1.0 / (cost_G[which_A] * count)
        gradient = torch.zeros_like(x_AP)
        into_weight, into_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        value = 0.5 * penalty_A * x_AP[:, :width].square().sum(1, dtype=torch.float64)
        for rows, own in zip(rows_N.split(_CHUNK), own_N.split(_CHUNK), strict=True):
            x = take(features_ND, rows, place).sub_(mean).mul_(scale)
            p = rows_by_rows(weight, x).add_(bias).view(heads, kinds, -1).log_softmax(1)
            target = own.expand(heads, 1, -1)
            value -= p.gather(1, target).sum((1, 2), dtype=torch.float64) / count
            p.exp_().scatter_add_(1, target, p.new_full((1, 1, 1), -1.0).expand_as(target))
            flat = p.view(heads * kinds, -1)
            into_weight += rows_by_rows(flat, x.T)
            into_bias += flat.sum(1, keepdim=True)
        gradient[:, :width] = into_weight.view(heads, width) / count
        gradient[:, :width].addcmul_(x_AP[:, :width], penalty_A[:, None].float())
        gradient[:, width:] = into_bias.view(heads, kinds) / count
        return value, gradient

    first = torch.zeros(len(costs), width + len(present), device=place)
    if start is not None:
        first[:, :width] = start.weight_DGC[:, 0, present].T.reshape(1, -1)
        first[:, width:] = start.bias_GC[0, present]
    found = minimise(evaluate, first, tolerance=config.tolerance, max_steps=config.max_iter)
    weight = torch.zeros(depth, len(costs), classes, device=place)
    bias = torch.full((len(costs), classes), _ABSENT, device=place)
    weight[:, :, present] = found.x_GP[:, :width].view(len(costs), len(present), depth).permute(2, 0, 1)
    # A constant added to all biases changes nothing; without it they would drift with the starting point.
    free = found.x_GP[:, width:]
    bias[:, present] = free - free.mean(1, keepdim=True)
    converged = found.gradient_G <= config.tolerance
    return Solved(Heads(weight, bias, mean, scale), tuple(found.steps_G.tolist()), tuple(converged.tolist()))


def regress(
    train: FeatureTable, test: FeatureTable, config: LogRegConfig, workspace: Workspace | None = None
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Pick the cost on held-out training rows, fit all training rows with it; return metrics on `test`, and the path.

    Raises:
        DataError: for missing labels, classes that do not match, or a single class.
    """
    workspace = workspace or Workspace(None)
    test_labels = labels_in_train_order(train, test)
    if train.labels_N is None:
        raise DataError("the training features carry no labels.")
    place = pick_device(config.device, torch.nn.Identity())  # no parameters: an accelerator when there is one
    classes = max(len(train.classes), int(train.labels_N.max()) + 1)
    fit_rows, held_rows = (torch.from_numpy(r) for r in split_rows(train.labels_N, config.held_out, config.seed))
    features, test_features = (near(t.tensor, place) for t in (train, test))
    labels = torch.from_numpy(train.labels_N).to(place)
    costs = tuple(sorted(set(config.costs)))  # strong penalties first
    path: dict[float, dict[str, Any]] = {}
    hits: dict[float, int] = {}
    winner: Heads | None = None
    best = costs[0]
    # Remembered steps of L-BFGS are what needs memory: 1,000 classes of 2,048 dimensions go a few costs at a time.
    together = max(1, _STATE_BYTES // (4 * 26 * classes * (features.shape[1] + 1)))

    def score(part: Sequence[float]) -> None:
        nonlocal winner, best
        name = "costs " + " ".join(f"{c:.6g}" for c in part)
        kept = workspace.load_state(name)
        if kept is None:
            solved = solve(features, labels, fit_rows, classes, part, config, winner)
            heads = solved.heads
            kept = {"weight": heads.weight_DGC, "bias": heads.bias_GC, "mean": heads.mean_D, "scale": heads.scale_D}
            kept |= {"steps": list(solved.steps), "converged": list(solved.converged)}
            workspace.save_state(name, kept)
        heads = Heads(*(kept[k].to(place) for k in ("weight", "bias", "mean", "scale")))
        right, loss = count_hits(heads, features, labels, held_rows)
        for g, cost in enumerate(part):
            hits[cost] = int(right[g].sum())
            path[cost] = {
                "cost": cost,
                "held_out_top1": round(100.0 * hits[cost] / len(held_rows), 3),
                "held_out_loss": round(float(loss[g]), 5),
                "steps": kept["steps"][g],
                "converged": kept["converged"][g],
            }
        # Of equals the lower loss wins.
        picked = min(path, key=lambda c: (-hits[c], path[c]["held_out_loss"]))
        if picked in part:
            best, winner = picked, heads.pick(part.index(picked))

    coarse = costs[::_COARSE] if config.search and len(costs) > 2 * _COARSE else costs
    for i in range(0, len(coarse), together):
        score(coarse[i : i + together])
    if len(coarse) < len(costs):
        centre = costs.index(best)
        fine = [c for c in costs[max(0, centre - _COARSE + 1) : centre + _COARSE] if c not in path]
        for i in range(0, len(fine), together):
            score(fine[i : i + together])
    every = torch.arange(len(train.labels_N))
    final = solve(features, labels, every, classes, (best,), config, winner)
    target = torch.from_numpy(test_labels).to(place)
    metrics, per_class = score_head(final.heads, test_features, target, class_names(train, classes))
    metrics["held_out_top1"] = accuracy(hits[best], len(held_rows))
    details = {
        "chosen": path[best],
        "at_edge_of_path": len(costs) > 1 and best in (costs[0], costs[-1]),
        "path": [path[c] for c in sorted(path)],
        "final_steps": final.steps[0],
        "final_converged": final.converged[0],
        "fit_images": len(fit_rows),
        "held_out_images": len(held_rows),
        "per_class_top1": per_class,
    }
    return metrics, details


class LogReg(Protocol):
    """Logistic regression on frozen features: the penalty is picked on held-out images, test is scored once."""

    name: ClassVar[str] = "logreg"
    Config: ClassVar[type[ProtocolConfig]] = LogRegConfig
    needs_labels: ClassVar[bool] = True

    def run(self, encoder: Encoder, data: EvalData, config: LogRegConfig | None = None) -> Report:
        """Return top-1 (main), top-5, the loss and the held-out top-1, with the path in `details`."""
        config = config or LogRegConfig()
        train_source, test_source = require_labels(self.name, data)
        cost: dict[str, float] = {"images": float(len(train_source) + len(test_source))}
        workspace = Workspace.open(self.name, encoder, data, config)
        with timed(cost, "features_s"):
            train = extract_for(encoder, train_source, data.normalise, config)
            test = extract_for(encoder, test_source, data.normalise, config)
        with timed(cost, "fit_s"):
            metrics, details = regress(train, test, config, workspace)
        workspace.clear()
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(train_source), "test": describe(test_source)},
            metrics=metrics,
            main="top1",
            details=details,
            cost=cost,
        )
