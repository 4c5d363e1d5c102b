"""THE table of evaluation protocols. One row is all that names a protocol anywhere."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from imprint.core.errors import unknown

if TYPE_CHECKING:
    from imprint.evals.protocol import Protocol


Takes = Literal["images", "several", "pairs", "boxes", "masks", "video", "text", "task"]


@dataclass(frozen=True)
class Row:
    """One protocol.

    Attributes:
        name: catalogue name; the module is `imprint.evals.<name>`.
        cls: class name in that module.
        needs_labels: whether the sources must carry labels.
        needs_test: whether a test source must be given.
        takes: what a SRC of it is, for help and errors: `images`, or a kind with its own reader.
        description: one line for tables.
    """

    name: str
    cls: str
    needs_labels: bool
    needs_test: bool
    description: str
    takes: Takes = "images"


CATALOG: tuple[Row, ...] = (
    Row("knn", "KNN", True, True, "k nearest neighbours of frozen features, many k and temperatures in one pass"),
    Row("linear", "Linear", True, True, "linear probe on frozen features, a grid of settings trained together"),
    Row("logreg", "LogReg", True, True, "logistic regression on frozen features by L-BFGS, a path of penalties"),
    Row("finetune", "Finetune", True, True, "the whole encoder trained further with a linear classifier on labels"),
    Row("semi", "Semi", True, True, "few labels: 1 %, 10 % or counts per class, fine-tuned or probed"),
    Row("fewshot", "FewShot", True, False, "n-way k-shot episodes on frozen features, with intervals over episodes"),
    Row("transfer", "Transfer", True, True, "one protocol on a list of data sets, one table", "several"),
    Row("zeroshot", "ZeroShot", True, False, "classes named by texts, for image-text encoders"),
    Row("retrieval", "Retrieval", False, False, "texts find images and images texts: R@1, R@5, R@10", "pairs"),
    Row(
        "detection", "Detection", False, True, "Mask R-CNN on the encoder: box and mask AP on COCO-format data", "boxes"
    ),
    Row("segmentation", "Segmentation", False, True, "linear head or UPerNet: mIoU on images with masks", "masks"),
    Row("video", "Video", False, False, "masks of the first frame carried through a video: J&F", "video"),
    Row(
        "video_oneshot", "VideoOneShot", False, False, "a patch classifier fitted on one frame scores the rest", "video"
    ),
    Row(
        "text_classification",
        "TextClassification",
        True,
        True,
        "a language model fine-tuned (or frozen) with a classifier on labelled texts",
        "text",
    ),
    Row(
        "incontext", "InContext", False, False, "a task in a prompt, for causal language models: 0, 1, k shots", "task"
    ),
    Row("labelfree", "LabelFree", False, False, "RankMe, LiDAR, alpha-ReQ and other measures that need no labels"),
)


def names() -> tuple[str, ...]:
    """Return all protocol names."""
    return tuple(row.name for row in CATALOG)


def row(name: str) -> Row:
    """Return the row of a protocol.

    Raises:
        ConfigError: for an unknown name, naming the nearest known one.
    """
    for candidate in CATALOG:
        if candidate.name == name:
            return candidate
    raise unknown("protocol", name, names())


def protocol_class(name: str) -> type[Protocol]:
    """Import and return the class of a protocol."""
    entry = row(name)
    cls: type[Protocol] = getattr(importlib.import_module(f"imprint.evals.{name}"), entry.cls)
    return cls
