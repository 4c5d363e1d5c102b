"""Few labels: the encoder fine-tuned, or probed, on 1 % and 10 % of the labels or on so many images of each class."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.data.compact import cache_dir
from imprint.data.label_subsets import Picked, draw_subset, read_subset, write_subset
from imprint.data.sources import Source, digest
from imprint.evals.catalog import protocol_class
from imprint.evals.finetune import FinetuneConfig
from imprint.evals.intervals import mean_of
from imprint.evals.linear import LinearConfig
from imprint.evals.logreg import LogRegConfig
from imprint.evals.protocol import (
    EvalData,
    Protocol,
    ProtocolConfig,
    describe,
    label_digest,
    require_labels,
    shared_with,
)
from imprint.evals.report import Metric, Report
from imprint.evals.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class FewLabelsConfig(FinetuneConfig):
    """Fine-tuning on few labels: SimCLR's crops and flips, no other regularisation (arXiv 2002.05709, App. B.5).

    SimCLR trains 60 epochs on 1 % and 30 on 10 %, by SGD in batches of 4096; here it is AdamW, and one length for all.

    Attributes:
        epochs: passes over the labelled images.
        minibatch: images per step.
        weight_decay: of matrices.
        warmup: epochs of linear warm-up.
        drop_path: stochastic depth rate at the last block.
        mixup: alpha of its Beta distribution, 0 for none.
        cutmix: alpha of its Beta distribution, 0 for none; with both, each batch takes one of them.
        smoothing: label smoothing.
        rand_augment: magnitude of RandAugment (arXiv 1909.13719, two operations of fifteen) in [0, 10]; 0 for none.
        erasing: probability of random erasing (arXiv 1708.04896) by noise.
    """

    epochs: int = 60
    minibatch: int = 256
    weight_decay: float = 0.0
    warmup: float = 0.0
    drop_path: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    rand_augment: float = 0.0
    erasing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SemiConfig(ProtocolConfig):
    """Which labels, how often drawn, and what is done with them.

    Attributes:
        shares: of every class's labels (SimCLR, arXiv 2002.05709, Sec. 6: .01 and .1); the first is the headline.
        per_class: numbers of labels of every class, in place of shares.
        subset: file that lists the labelled images (what an earlier run wrote, or an official list of names), in place
            of both.
        draws: subsets of each size, drawn with seeds seed, seed + 1, ...; several give a mean with its interval.
        engine: finetune trains the whole network, linear and logreg a classifier on frozen features.
        save: folder for the files that list each subset; empty keeps them in the user's cache.
        finetune: options of fine-tuning.
        linear: options of the linear probe.
        logreg: options of logistic regression.
    """

    shares: tuple[float, ...] = (0.01, 0.1)
    per_class: tuple[int, ...] = ()
    subset: str = ""
    draws: int = 1
    engine: Literal["finetune", "linear", "logreg"] = "finetune"
    save: str = ""
    finetune: FewLabelsConfig = field(default_factory=FewLabelsConfig)
    linear: LinearConfig = field(default_factory=LinearConfig)
    logreg: LogRegConfig = field(default_factory=LogRegConfig)

    def __post_init__(self) -> None:
        """Check what is drawn."""
        super().__post_init__()
        if self.engine not in ("finetune", "linear", "logreg"):
            raise ConfigError(f"engine is finetune, linear or logreg, not '{self.engine}'.")
        if self.draws < 1:
            raise ConfigError(f"at least one draw is needed, got {self.draws}.")
        if not all(0 < share <= 1 for share in self.shares):
            raise ConfigError("shares lie in (0, 1]: 0.01 is 1 % of every class.")
        if not all(count >= 1 for count in self.per_class):
            raise ConfigError("per_class counts images of every class, 1 or more.")
        if not (self.subset or self.per_class or self.shares):
            raise ConfigError("nothing is asked for: give --shares, --per-class or --subset.")
        if self.subset and self.draws > 1:
            raise ConfigError("a subset from a file is one draw; leave out --draws.")


@dataclass(frozen=True)
class Part:
    """One subset: its size as text (`1%`, `25 per class`, `subset`), its seed, and the positions picked."""

    size: str
    seed: int
    picked: Picked


class Semi(Protocol):
    """Judge the encoder by what few labels make of it: each subset is one evaluation of the chosen engine."""

    name: ClassVar[str] = "semi"
    Config: ClassVar[type[ProtocolConfig]] = SemiConfig
    needs_labels: ClassVar[bool] = True

    def run(self, encoder: Encoder, data: EvalData, config: SemiConfig | None = None) -> Report:
        """Return top-1 of every size (the first is the main one), over the draws, and which images were labelled."""
        config = config or SemiConfig()
        train, test = require_labels(self.name, data)
        workspace = Workspace.open(self.name, encoder, data, config)
        cost: dict[str, float] = {"images": 0.0}
        found: dict[str, list[dict[str, Any]]] = {}
        for part in parts(train, config):
            name = f"{part.size}-seed{part.seed}-{digest(part.picked)}"  # a file of names may say others the next time
            result = workspace.recall(name)
            if result is None:
                chosen = EvalData(train=train.subset(part.picked), test=test, normalise=data.normalise)
                inner = dataclasses.replace(shared_with(getattr(config, config.engine), config), seed=part.seed)
                result = summary(protocol_class(config.engine)().run(encoder, chosen, inner), part)
                workspace.remember(name, result)
            for phase, amount in result["cost"].items():
                cost[phase] = cost.get(phase, 0.0) + amount
            result["subset"] = keep(part, train, config)
            found.setdefault(part.size, []).append(result)
        metrics = {
            f"{size}/{name}": over_draws([draw["metrics"][name] for draw in draws])
            for name in ("top1", "top5", "loss")
            for size, draws in found.items()
            if all(name in draw["metrics"] for draw in draws)
        }
        workspace.clear()
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(train), "test": describe(test)},
            metrics=metrics,
            main=next(iter(metrics)),
            details={"engine": config.engine, "draws": found},
            cost=cost,
        )


def parts(train: Source, config: SemiConfig) -> list[Part]:
    """Return every subset that is asked for."""
    if config.subset:
        return [Part("subset", config.seed, read_subset(Path(config.subset).expanduser(), train))]
    seeds = range(config.seed, config.seed + config.draws)
    if config.per_class:
        return [
            Part(f"{count} per class", seed, draw_subset(train, per_class=count, seed=seed))
            for count in config.per_class
            for seed in seeds
        ]
    return [
        Part(f"{100 * share:g}%", seed, draw_subset(train, share=share, seed=seed))
        for share in config.shares
        for seed in seeds
    ]


def keep(part: Part, train: Source, config: SemiConfig) -> dict[str, Any]:
    """Write the subset's list; return its file, what that lists, and the number of images."""
    if config.subset:
        return {"file": config.subset, "images": len(part.picked)}
    if not (config.save or config.cache):
        return {"file": "", "images": len(part.picked)}
    source = digest(train.fingerprint, label_digest(train))
    folder = Path(config.save).expanduser() if config.save else cache_dir() / "subsets" / source
    path = folder / f"{part.size.replace(' ', '_').replace('%', 'pct')}-seed{part.seed}.txt"
    return {"file": str(path), "lists": write_subset(path, train, part.picked), "images": len(part.picked)}


def summary(report: Report, part: Part) -> dict[str, Any]:
    """Return what is kept of the evaluation of one subset, JSON-ready."""
    kept = ("chosen", "at_edge_of_grid", "train_loss", "per_class_top1")
    return {
        "seed": part.seed,
        "metrics": {name: dataclasses.asdict(metric) for name, metric in report.metrics.items()},
        "cost": report.cost,
        **{name: report.details[name] for name in kept if name in report.details},
    }


def over_draws(metrics: list[dict[str, Any]]) -> Metric:
    """Return the only draw as it is, or the mean of several with its interval over draws."""
    return Metric(**metrics[0]) if len(metrics) == 1 else mean_of([metric["value"] for metric in metrics])
