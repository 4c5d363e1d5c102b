"""k nearest neighbours of frozen features: the plainest question to an embedding, with nothing to train or tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.evals.features import FeatureTable, extract_for
from imprint.evals.intervals import accuracy, class_shares
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
from imprint.ops.neighbours import Weighting, inverse_norms, knn_classify


@dataclass(frozen=True, kw_only=True)
class KNNConfig(ProtocolConfig):
    """Settings of the vote; the first k with the first temperature is the headline, fixed before anything is scored.

    Attributes:
        ks: numbers of neighbours; those above the size of the bank are left out.
        temperatures: T of the weights exp(cosine / T).
        weighting: `exp` (InstDisc, DINO) or `softmax` (DINOv2).
    """

    ks: tuple[int, ...] = (20, 1, 5, 10, 100, 200)
    temperatures: tuple[float, ...] = (0.07,)
    weighting: Weighting = "exp"

    def __post_init__(self) -> None:
        """Check both lists."""
        super().__post_init__()
        if not self.ks or min(self.ks) < 1 or not self.temperatures or min(self.temperatures) <= 0:
            raise ConfigError("kNN needs at least one k of 1 or more and one temperature above 0.")


def vote(train: FeatureTable, test: FeatureTable, config: KNNConfig) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Classify every test row by the train rows; return metrics and the settings behind them.

    `top1` and `top5` are those of the first k and temperature; `top1/k=K,T=T` those of every pair. All pairs cost one
    pass over the bank.

    Raises:
        DataError: for missing labels, classes that do not match, or a bank smaller than every k.
    """
    target = torch.from_numpy(labels_in_train_order(train, test))
    if train.labels_N is None:
        raise DataError("the train features carry no labels.")
    ks = tuple(k for k in config.ks if k <= len(train))
    if not ks:
        raise DataError(f"the bank has {len(train)} images, fewer than every k asked for ({min(config.ks)} the least).")
    place = pick_device(config.device, torch.nn.Identity())  # no parameters: an accelerator when there is one
    if place.type == "mps":
        place = torch.device("cpu")
    classes = max(len(train.classes), int(train.labels_N.max()) + 1)
    bank, scale = train.tensor.to(place), inverse_norms(train.tensor).to(place)
    if not torch.isfinite(scale).all() or not scale.all():  # NaN and infinite features: a copy in which they are not
        bank, scale = F.normalize(torch.nan_to_num(bank), dim=1), torch.ones_like(scale)
    queries = F.normalize(torch.nan_to_num(test.tensor.to(place)), dim=1)
    labels = torch.from_numpy(np.ascontiguousarray(train.labels_N)).to(place)
    found = knn_classify(
        queries, bank, labels, classes, ks, config.temperatures, weighting=config.weighting, scale_N=scale
    )
    metrics: dict[str, Metric] = {}
    per_class: dict[str, float] = {}
    for (k, temperature), ranked in found.items():
        hits = ranked.cpu() == target[:, None]
        if (k, temperature) == (ks[0], config.temperatures[0]):
            metrics["top1"] = accuracy(int(hits[:, 0].sum()), len(target))
            per_class = class_shares(hits[:, 0].numpy(), target.numpy(), train.classes)
            if classes > 5:
                metrics["top5"] = accuracy(int(hits.any(1).sum()), len(target))
        metrics[f"top1/k={k},T={temperature:g}"] = accuracy(int(hits[:, 0].sum()), len(target))
    details = {
        "k": ks[0],
        "temperature": config.temperatures[0],
        "weighting": config.weighting,
        "per_class_top1": per_class,
        "left_out_ks": [k for k in config.ks if k not in ks],
        "dimensions": int(train.features_ND.shape[1]),
    }
    return metrics, details


class KNN(Protocol):
    """Weighted kNN by cosine similarity (InstDisc, arXiv 1805.01978): train is the bank, test is classified."""

    name: ClassVar[str] = "knn"
    Config: ClassVar[type[ProtocolConfig]] = KNNConfig
    needs_labels: ClassVar[bool] = True

    def run(self, encoder: Encoder, data: EvalData, config: KNNConfig | None = None) -> Report:
        """Return top-1 (main) and top-5 of the headline setting, and top-1 of every setting."""
        config = config or KNNConfig()
        train_source, test_source = require_labels(self.name, data)
        cost: dict[str, float] = {"images": float(len(train_source) + len(test_source))}
        with timed(cost, "features_s"):
            train = extract_for(encoder, train_source, data.normalise, config)
            test = extract_for(encoder, test_source, data.normalise, config)
        with timed(cost, "search_s"):
            metrics, details = vote(train, test, config)
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(train_source), "test": describe(test_source)},
            metrics=metrics,
            main="top1",
            details=details,
            cost=cost,
        )
