"""Transfer: one protocol on a list of data sets, in one call, with one table."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError, ImprintError, unknown
from imprint.data.labels import SPLIT_NAMES
from imprint.data.sources import Source, digest, open_source
from imprint.evals.catalog import protocol_class
from imprint.evals.finetune import FinetuneConfig
from imprint.evals.knn import KNNConfig
from imprint.evals.linear import LinearConfig
from imprint.evals.logreg import LogRegConfig
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, label_digest, shared_with
from imprint.evals.report import Metric, Report
from imprint.evals.workspace import Workspace

Choice = Literal["top1", "mean_per_class"]
ENGINES = ("linear", "logreg", "knn", "finetune")
CHOICES: tuple[Choice, ...] = ("top1", "mean_per_class")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TransferConfig(ProtocolConfig):
    """What is done on every data set, and how it is counted.

    Attributes:
        engine: linear, logreg, knn or finetune.
        metrics: top1, or mean_per_class (the mean of the classes' accuracies: in SimCLR's suite Aircraft, Pets, Caltech
            and Flowers; arXiv 2002.05709, App. B.8); one for all data sets, or one for each in their order.
        names: of the data sets in their order; empty takes them from the paths.
        linear: options of the linear probe.
        logreg: options of logistic regression.
        knn: options of the kNN vote.
        finetune: options of fine-tuning.
    """

    engine: Literal["linear", "logreg", "knn", "finetune"] = "linear"
    metrics: tuple[Choice, ...] = ("top1",)
    names: tuple[str, ...] = ()
    linear: LinearConfig = field(default_factory=LinearConfig)
    logreg: LogRegConfig = field(default_factory=LogRegConfig)
    knn: KNNConfig = field(default_factory=KNNConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        """Check the names."""
        super().__post_init__()
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        for name in self.metrics:
            if name not in CHOICES:
                raise unknown("transfer metric", name, CHOICES)
        if not self.metrics:
            raise ConfigError("name a metric: top1 or mean_per_class.")
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"names of data sets must differ, got {', '.join(self.names)}.")


@dataclass(frozen=True)
class Unopened:
    """A data set that could not be opened: it is reported, and the others are judged.

    Attributes:
        spec: the words it was asked for by.
        reason: what was wrong.
    """

    spec: str
    reason: str
    fingerprint: str = ""
    channels: int = 3

    def __len__(self) -> int:
        """Return 0."""
        return 0


@dataclass(frozen=True)
class Sources(Sequence[Source | Unopened]):
    """Several sources side by side."""

    members: tuple[Source | Unopened, ...]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.members)

    def __getitem__(self, i: Any) -> Any:
        """Return the source at a position."""
        return self.members[i]

    @property
    def spec(self) -> str:
        """The words of all of them."""
        return ", ".join(member.spec for member in self.members)

    @property
    def fingerprint(self) -> str:
        """Digest over the members' and their labels, in order."""
        return digest(*(member.fingerprint + label_digest(member) for member in self.members))

    @property
    def channels(self) -> int:
        """Channels of the widest one."""
        return max(member.channels for member in self.members)


class Transfer(Protocol):
    """Judge the encoder on pairs of train and test sources, in order, by one engine."""

    name: ClassVar[str] = "transfer"
    Config: ClassVar[type[ProtocolConfig]] = TransferConfig
    needs_labels: ClassVar[bool] = True

    @classmethod
    def open(cls, spec: Any, config: Any) -> Sources:
        """Open every SRC of the list; one that fails stands there with its reason."""
        listed = spec if isinstance(spec, (list, tuple)) else [spec]
        return Sources(tuple(_opened(one) for one in listed))

    def run(self, encoder: Encoder, data: EvalData, config: TransferConfig | None = None) -> Report:
        """Return `<name>/<metric>` of every data set and their `mean` (main); failures are in `details`.

        Raises:
            ConfigError: for lists of different lengths.
            DataError: when not one data set could be judged.
        """
        config = config or TransferConfig()
        if data.test is None or len(data.train) != len(data.test):
            tests = 0 if data.test is None else len(data.test)
            raise ConfigError(
                f"transfer takes pairs: {len(data.train)} train and {tests} test sources were given; list them in the "
                "same order, --train A B --test A' B'."
            )
        names, choices = _per_set(data, config)
        cost: dict[str, float] = {"images": 0.0}
        metrics: dict[str, Metric] = {}
        rows: list[dict[str, Any]] = []
        failed: dict[str, str] = {}
        spaces: list[Workspace] = []
        for name, choice, train, test in zip(names, choices, data.train, data.test, strict=True):
            try:
                row, space = judge(encoder, train, test, data, config)
            except ImprintError as error:
                failed[name] = str(error)
                _logger.warning("%s was left out: %s", name, error)
                continue
            spaces.append(space)
            for phase, amount in row["cost"].items():
                cost[phase] = cost.get(phase, 0.0) + amount
            metrics[f"{name}/{choice}"] = Metric(**row[choice])
            rows.append({"name": name, "metric": choice, **row})
        if not metrics:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise DataError(f"none of the {len(names)} data sets could be judged. {reasons}")
        metrics["mean"] = Metric(value=sum(m.value for m in metrics.values()) / len(metrics), n=len(metrics))
        if not failed:
            for space in spaces:
                space.clear()
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={role: _described(getattr(data, role)) for role in ("train", "test")},
            metrics=metrics,
            main="mean",
            details={"engine": config.engine, "failed": failed, "table": rows},
            cost=cost,
        )


def judge(
    encoder: Encoder, train: Source | Unopened, test: Source | Unopened, data: EvalData, config: TransferConfig
) -> tuple[dict[str, Any], Workspace]:
    """Return the JSON-ready result of one pair, remembered when an earlier, killed call finished it.

    Raises:
        ImprintError: when it cannot be judged.
    """
    for source in (train, test):
        if isinstance(source, Unopened):
            raise DataError(source.reason)
    pair = EvalData(train=train, test=test, normalise=data.normalise)
    inner = shared_with(getattr(config, config.engine), config)
    space = Workspace.open(f"transfer {config.engine}", encoder, pair, inner)
    row = space.recall("result")
    if row is None:
        report = protocol_class(config.engine)().run(encoder, pair, inner)
        per_class = report.details["per_class_top1"]
        top1 = dataclasses.asdict(report.metrics["top1"])
        mean = Metric(value=sum(per_class.values()) / len(per_class), n=report.metrics["top1"].n)
        row = {
            "data": report.data,
            "top1": top1,
            "mean_per_class": dataclasses.asdict(mean),
            "cost": report.cost,
            "chosen": report.details.get("chosen"),
            "per_class_top1": per_class,
        }
        space.remember("result", row)
    return row, space


def _opened(spec: Any) -> Source | Unopened:
    try:
        return open_source(spec)
    except ImprintError as error:
        return Unopened(os.fspath(spec) if isinstance(spec, (str, os.PathLike)) else repr(spec), str(error))


def _per_set(data: EvalData, config: TransferConfig) -> tuple[list[str], list[Choice]]:
    """Return a distinct name and the metric of every data set.

    Raises:
        ConfigError: for lists of names or metrics of another length.
    """
    count = len(data.train)
    if config.names and len(config.names) != count:
        raise ConfigError(f"{len(config.names)} names were given for {count} data sets.")
    if len(config.metrics) not in (1, count):
        raise ConfigError(f"{len(config.metrics)} metrics were given for {count} data sets; give one, or one for each.")
    names = list(config.names)
    for source in data.train[len(names) :]:
        plain = set_name(source.spec)
        again = sum(name == plain or name.startswith(f"{plain}-") for name in names)
        names.append(f"{plain}-{again + 1}" if again else plain)
    return names, list(config.metrics) * (count if len(config.metrics) == 1 else 1)


def set_name(spec: str) -> str:
    """Return what a data set is called: the last word of its path that does not name a split."""
    words = [word for word in spec.replace("\\", "/").replace(":", "/").split("/") if word not in ("", ".", "..")]
    words = [word.rsplit(".", 1)[0] if i == len(words) - 1 else word for i, word in enumerate(words)]
    telling = [word for word in words if word.lower() not in SPLIT_NAMES]
    return (telling or words or [spec])[-1].replace(" ", "_")


def _described(sources: Sources) -> dict[str, Any]:
    """Return one description for the list: its members, and what they come to together."""
    members = [
        {"spec": s.spec, "reason": s.reason, "count": 0} if isinstance(s, Unopened) else describe(s) for s in sources
    ]
    return {
        "spec": sources.spec,
        "count": sum(m["count"] for m in members),
        "classes": sum(m.get("classes", 0) for m in members),
        "fingerprint": sources.fingerprint,
        "members": members,
    }
