"""Classes named by texts: what an image-text encoder knows without one labelled image.

Shapes: N images, K classes, T templates, E width of the shared space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.backbones.dual_encoder import DualEncoder, require_dual
from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError, nearest
from imprint.data.sources import Source
from imprint.evals.image_text_features import joint_images, text_features
from imprint.evals.intervals import accuracy
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, timed
from imprint.evals.report import Metric, Report
from imprint.evals.represent import pick_device
from imprint.evals.retrieval import read_lines
from imprint.ops.retrieval import first_ranks

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up of a {}.",
    "a {} seen from afar.",
    "a blurry picture of a {}.",
    "a bright picture of a {}.",
    "several {} together.",
    "{}",
)
_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(ProtocolConfig):
    """Settings of the classifier made of texts (CLIP, arXiv 2103.00020, Sec. 3.1).

    Attributes:
        names: file with the words for the classes: one name a line in the order of the classes, or `class<TAB>name`,
            or JSON {class: name}; None takes the class names of the source, `_` and `-` as spaces.
        templates: file with one template a line, `{}` where the name goes; None takes eight short ones.
    """

    names: str | None = None
    templates: str | None = None


class ZeroShot(Protocol):
    """Each image takes the class whose texts, averaged over the templates, are nearest to it."""

    name: ClassVar[str] = "zeroshot"
    Config: ClassVar[type[ProtocolConfig]] = ZeroShotConfig
    needs_labels: ClassVar[bool] = True

    def run(self, encoder: Encoder, data: EvalData, config: ZeroShotConfig | None = None) -> Report:
        """Return top-1 (main), top-5 and the mean over classes, and per class in the details; ties count as wrong."""
        config = config or ZeroShotConfig()
        source: Source = data.train
        dual = require_dual(encoder, self.name)
        if source.labels is None:
            raise DataError(
                f"'{self.name}' is scored by labels, and '{source.spec}' has none. Use one folder per class."
            )
        words = class_words(source, config.names)
        templates = read_templates(config.templates)
        cost: dict[str, float] = {"images": float(len(source)), "texts": float(len(words) * len(templates))}
        with timed(cost, "features_s"):
            table, images_NE = joint_images(dual, source, data.normalise, config)
        with timed(cost, "texts_s"):
            classes_KE, cut = class_vectors(dual, words, templates, config)
        assert table.labels_N is not None  # the source has them
        known = table.labels_N >= 0
        labels = torch.from_numpy(table.labels_N[known])
        place = pick_device(config.device, torch.nn.Identity())
        with timed(cost, "search_s"):
            ranks = first_ranks(
                images_NE[torch.from_numpy(known)].to(place), labels.to(place), classes_KE.to(place),
                torch.arange(len(words)).to(place),
            ).numpy()  # fmt: skip
        n, numbers = len(ranks), labels.numpy()
        of_class = np.bincount(numbers, minlength=len(words))
        hits = np.bincount(numbers[ranks == 1], minlength=len(words))
        present = of_class > 0
        metrics: dict[str, Metric] = {"top1": accuracy(int((ranks == 1).sum()), n)}
        if len(words) > 5:
            metrics["top5"] = accuracy(int((ranks <= 5).sum()), n)
        metrics["mean_per_class"] = Metric(value=float(100 * (hits[present] / of_class[present]).mean()), n=n)
        details: dict[str, Any] = {
            "chance": {"top1": 100.0 / len(words), "top5": 100.0 * min(5, len(words)) / len(words)},
            "templates": list(templates),
            "texts_cut": cut,
            "per_class": [
                {"class": name, "words": word, "n": int(c), "top1": 100 * int(h) / int(c) if c else None}
                for name, word, c, h in zip(source.classes, words, of_class, hits, strict=True)
            ],
            "ties": "count as wrong",
        }
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(source)},
            metrics=metrics,
            main="top1",
            details=details,
            cost=cost,
        )


def class_vectors(
    encoder: DualEncoder, words: Sequence[str], templates: Sequence[str], config: ProtocolConfig
) -> tuple[Tensor, int]:
    """Return one vector per class (K, E) and how many texts were cut.

    w_k = v / |v| with v the mean over templates of the text vectors of length 1 (CLIP, Sec. 3.1.4).
    """
    prompts = [template.replace("{}", word) for word in words for template in templates]
    table = text_features(encoder, prompts, config)
    mean_KE = table.tensor.unflatten(0, (len(words), len(templates))).mean(1)
    return F.normalize(mean_KE, dim=-1), table.cut


def read_templates(path: str | None) -> tuple[str, ...]:
    """Return the templates of a file, or the built-in ones.

    Raises:
        DataError: for a file that cannot be read.
        ConfigError: for a line without `{}`.
    """
    if path is None:
        return TEMPLATES
    lines = tuple(read_lines(path, "templates"))
    for line in lines:
        if "{}" not in line:
            raise ConfigError(f"the template '{line}' in '{path}' has no {{}} where the class name goes.")
    return lines


def class_words(source: Source, path: str | None) -> tuple[str, ...]:
    """Return the words for each class of a source, in the order of its labels.

    Raises:
        DataError: for a file that cannot be read or does not fit the classes.
        ConfigError: for classes whose names are no words.
    """
    classes = source.classes
    if path is None:
        coded = [name for name in classes if _WORDNET.fullmatch(name) or not re.search(r"[^\W\d_]", name)]
        if coded or not classes:
            shown = f"are called {', '.join(coded[:3])}" if coded else "have no names"
            raise ConfigError(
                f"the classes of '{source.spec}' {shown}, which says nothing to a text encoder. "
                "Give the words by --names FILE: one name a line, or class<TAB>name."
            )
        return tuple(" ".join(re.split(r"[_\-\s]+", name)).strip() for name in classes)
    told = _told(path)
    if isinstance(told, list):
        if len(told) != len(classes):
            raise DataError(f"'{path}' names {len(told)} classes and '{source.spec}' has {len(classes)}.")
        return tuple(told)
    lost = [name for name in classes if name not in told]
    if lost:
        near = nearest(lost[0], told)
        hint = f" (it has '{near}')" if near else ""
        raise DataError(f"'{path}' has no words for {len(lost)} of {len(classes)} classes, such as '{lost[0]}'{hint}.")
    return tuple(told[name] for name in classes)


def _told(path: str) -> list[str] | dict[str, str]:
    """Return the words of a file, in order or by class."""
    if Path(path).suffix.lower() == ".json":
        try:
            value = json.loads("\n".join(read_lines(path, "class names")))
        except ValueError as error:
            raise DataError(f"the file '{path}' with class names is no JSON: {error}.") from error
        if isinstance(value, dict):
            return {str(key): _first(words) for key, words in value.items()}
        if isinstance(value, list):
            return [_first(words) for words in value]
        raise DataError(f"the file '{path}' must hold a JSON object {{class: name}} or a list of names.")
    lines = read_lines(path, "class names")
    if all("\t" in line for line in lines):
        return {line.partition("\t")[0].strip(): line.partition("\t")[2].strip() for line in lines}
    return lines


def _first(words: Any) -> str:
    return str(words[0] if isinstance(words, list) and words else words)
