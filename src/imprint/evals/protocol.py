"""The contract of every evaluation: `Protocol.run(encoder, data, config) -> Report`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.data.sources import digest

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder
    from imprint.data.sources import Source
    from imprint.evals.features import FeatureTable
    from imprint.evals.report import Report

Tokens = Literal["pooled", "cls", "patch_mean", "cls+patch_mean"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """What an encoder is judged on.

    Attributes:
        train: bank of the kNN, training set of a probe, or the only source; what the protocol's `open` returned.
        test: what is scored; None for protocols with one source.
        normalise: the pixel normalisation that the encoder was trained with.
    """

    train: Any
    test: Any = None
    normalise: Normalise = field(default_factory=Normalise)


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """How features are made, the same for every protocol.

    Attributes:
        image_size: side of the evaluation view in pixels; None takes the encoder's.
        tokens: which output stands for an image (see `features.extract`).
        layers: blocks whose outputs are concatenated (negatives count back); empty takes the encoder's output.
        batch_size: images per forward.
        workers: loader threads; None measures the machine.
        device: auto, cpu, cuda or mps.
        precision: auto is bf16 on CUDA devices that have it, else fp32.
        cache: keep features and the progress of trainings in the user's cache, so that features are reused and a killed
            evaluation goes on where it was.
        checkpoint_every: seconds of training between two checkpoints of that progress.
        seed: of every random choice (splits, augmentations).
    """

    image_size: int | None = None
    tokens: Tokens = "pooled"
    layers: tuple[int, ...] = ()
    batch_size: int = 256
    workers: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    cache: bool = True
    checkpoint_every: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.batch_size < 1:
            raise ConfigError(f"batch size must be at least 1, got {self.batch_size}.")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"image size is a side in pixels, at least 1; got {self.image_size}.")


P = TypeVar("P", bound=ProtocolConfig)


class Protocol:
    """Base of every protocol.

    Attributes:
        name: catalogue name.
        Config: the frozen configuration class.
        needs_labels: whether train and test must carry labels.
        takes_test: whether a test source is used where it may also be left out.
    """

    name: ClassVar[str]
    Config: ClassVar[type[ProtocolConfig]] = ProtocolConfig
    needs_labels: ClassVar[bool] = False
    takes_test: ClassVar[bool] = False

    @classmethod
    def open(cls, spec: Any, config: Any) -> Any:
        """Return what SRC `spec` names, ready for `EvalData`; images with or without labels unless overridden.

        Raises:
            DataError: for what cannot be opened.
        """
        from imprint.data.sources import open_source

        return open_source(spec)

    def run(self, encoder: Encoder, data: EvalData, config: Any = None) -> Report:
        """Judge `encoder` on `data`.

        Raises:
            DataError: for sources without the labels that the protocol needs, or classes that do not match.
            ConfigError: for options that cannot work with this encoder.
        """
        raise TypeError(f"{type(self).__name__} does not say how to run")


def require_labels(protocol: str, data: EvalData) -> tuple[Source, Source]:
    """Return (train, test) when both carry labels.

    Raises:
        DataError: naming the source that lacks labels, and the protocols that need none.
    """
    if data.test is None:
        raise DataError(f"'{protocol}' scores a test source and none was given; add --test SRC.")
    train: Source = data.train
    test: Source = data.test
    for role, source in (("train", train), ("test", test)):
        if source.labels is None:
            raise DataError(
                f"'{protocol}' needs labels, and the {role} source '{source.spec}' has none. "
                "Put images into one folder per class, or judge the encoder without labels: imprint evaluate labelfree."
            )
        if len(source) == 0:
            raise DataError(f"the {role} source '{source.spec}' is empty.")
    return train, test


def labels_in_train_order(train: FeatureTable, test: FeatureTable) -> npt.NDArray[np.int64]:
    """Return the test labels in the numbering of the train classes, matched by class name.

    Raises:
        DataError: when the test source has a class that the train source does not know.
    """
    if train.labels_N is None or test.labels_N is None:
        raise DataError("both sources need labels.")
    if not train.classes or not test.classes or tuple(train.classes) == tuple(test.classes):
        known = len(train.classes) or int(train.labels_N.max()) + 1
        if int(test.labels_N.max()) >= known:
            largest = int(test.labels_N.max())
            raise DataError(f"the test source has label {largest}; the train source has {known} classes.")
        return test.labels_N
    position = {name: i for i, name in enumerate(train.classes)}
    present = np.unique(test.labels_N)
    strangers = [test.classes[i] for i in present if test.classes[i] not in position]
    if strangers:
        shown = ", ".join(f"'{name}'" for name in strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise DataError(
            f"{len(strangers)} of {len(present)} test classes are unknown to the train source: {shown}. "
            f"Train has {len(train.classes)} classes: {', '.join(map(repr, train.classes[:5]))}"
            f"{', ...' if len(train.classes) > 5 else ''}. Give both sources the same class folders."
        )
    lookup = np.array([position.get(name, -1) for name in test.classes], dtype=np.int64)
    return np.asarray(lookup[test.labels_N], dtype=np.int64)


def label_digest(source: Any) -> str:
    """Return a hash over the labels and class names of a source, "" without labels.

    The fingerprint of most sources is that of their images, which may be labelled in several ways.
    """
    labels = getattr(source, "labels", None)
    return "" if labels is None else digest(np.asarray(labels, dtype=np.int64), *source.classes)


def describe(source: Source) -> dict[str, Any]:
    """Return spec, count, number of classes, fingerprint and digest of the labels of a source for a report."""
    return {
        "spec": source.spec,
        "count": len(source),
        "classes": len(source.classes),
        "fingerprint": source.fingerprint,
        "labels": label_digest(source),
    }


def shared_with(inner: P, outer: ProtocolConfig) -> P:
    """Return the configuration of a protocol that another one runs: what all protocols share comes from the other.

    A shared option that was set for the inner one itself stays.
    """
    taken = {
        field.name: getattr(outer, field.name)
        for field in dataclasses.fields(ProtocolConfig)
        if getattr(inner, field.name) == field.default
    }
    return dataclasses.replace(inner, **taken)


@contextmanager
def timed(cost: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds of the body to `cost[phase]`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        cost[phase] = cost.get(phase, 0.0) + time.perf_counter() - start
