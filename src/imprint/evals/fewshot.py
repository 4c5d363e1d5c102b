"""Few-shot classification: n-way k-shot episodes on frozen features, all of them as a few tensor operations.

Shapes: N images, E episodes, W ways (classes of an episode), S shots, Q queries of each way, K classes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError, unknown
from imprint.core.rng import key, uniforms
from imprint.evals.features import FeatureTable, extract_for
from imprint.evals.intervals import mean_of
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, timed
from imprint.evals.report import Metric, Report
from imprint.evals.represent import pick_device
from imprint.ops.episodes import centroid_logits, ridge_logits

Kind = Literal["cosine", "euclid", "ridge"]
KINDS: tuple[Kind, ...] = ("cosine", "euclid", "ridge")
Int = npt.NDArray[np.int64]
_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(ProtocolConfig):
    """Episodes: 5 ways, 1 and 5 shots, 15 queries, 600 of them (arXiv 1703.05175, Sec. 3.2; 1904.04232's code).

    Attributes:
        ways: classes of an episode.
        shots: labelled images of each class; every number is a set of episodes of its own, the first the headline.
        queries: images of each class that are classified; none of them is a shot.
        episodes: number of episodes.
        classifiers: cosine and euclid are nearest centroids, ridge is ridge regression; the first is the headline.
        centre: with two sources, subtract the mean feature of --train (SimpleShot, arXiv 1911.04623).
        unit_length: scale every feature to length 1, after centring (the same).
        penalty: of ridge regression.
    """

    ways: int = 5
    shots: tuple[int, ...] = (1, 5)
    queries: int = 15
    episodes: int = 600
    classifiers: tuple[Kind, ...] = KINDS
    centre: bool = True
    unit_length: bool = True
    penalty: float = 1.0

    def __post_init__(self) -> None:
        """Check the counts and names."""
        super().__post_init__()
        if self.ways < 2 or not self.shots or min(self.shots) < 1 or self.queries < 1 or self.episodes < 1:
            raise ConfigError("episodes need at least two ways, one shot and one query, and there must be one episode.")
        if not self.classifiers:
            raise ConfigError(f"name at least one classifier: {', '.join(KINDS)}.")
        for name in self.classifiers:
            if name not in KINDS:
                raise unknown("few-shot classifier", name, KINDS)
        if self.penalty <= 0:
            raise ConfigError(f"the penalty of ridge regression must be above 0, got {self.penalty}.")


class FewShot(Protocol):
    """Episodes are drawn from the last source given: from `test`, centred by the mean of `train`, or from `train`.

    `train` are base images: only their mean feature is used, so they need no labels.
    """

    name: ClassVar[str] = "fewshot"
    Config: ClassVar[type[ProtocolConfig]] = FewShotConfig
    needs_labels: ClassVar[bool] = True
    takes_test: ClassVar[bool] = True

    def run(self, encoder: Encoder, data: EvalData, config: FewShotConfig | None = None) -> Report:
        """Return the mean accuracy over episodes, with its interval, of every number of shots and classifier.

        Raises:
            DataError: for a source without labels, or too few classes with enough images.
        """
        config = config or FewShotConfig()
        novel = data.train if data.test is None else data.test
        base = data.train if data.test is not None and config.centre else None
        if novel.labels is None:
            raise DataError(
                f"'fewshot' draws episodes by label, and '{novel.spec}' has none. Put images into one folder per class."
            )
        cost: dict[str, float] = {"images": float(len(novel) + (len(base) if base is not None else 0))}
        with timed(cost, "features_s"):
            table = extract_for(encoder, novel, data.normalise, config)
            mean = None if base is None else mean_feature(extract_for(encoder, base, data.normalise, config))
        with timed(cost, "episodes_s"):
            metrics, details = judge(table, mean, config)
        described = {"train": describe(data.train)} | ({} if data.test is None else {"test": describe(data.test)})
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data=described,
            metrics=metrics,
            main=next(iter(metrics)),
            details={**details, "episodes_from": novel.spec, "centred_by": "" if base is None else base.spec},
            cost=cost,
        )


def mean_feature(table: FeatureTable, chunk: int = 8192) -> Tensor:
    """Return the mean (D) of a table, float32, summed in float64."""
    total = torch.zeros(table.tensor.shape[1], dtype=torch.float64)
    for rows in table.tensor.split(chunk):
        total += rows.double().sum(0)
    return (total / len(table)).float()


def judge(
    table: FeatureTable, mean_D: Tensor | None, config: FewShotConfig
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Draw and classify all episodes; return metrics `<ways>-way <shots>-shot/<classifier>`, and what they rest on."""
    if table.labels_N is None:
        raise DataError("the features carry no labels.")
    place = pick_device(config.device, torch.nn.Identity())  # no parameters: an accelerator when there is one
    metrics: dict[str, Metric] = {}
    used = 0
    for shots in config.shots:
        rows_EWM, used = draw_episodes(table.labels_N, table.classes, shots, config)
        shares = classify(table.tensor, rows_EWM, shots, mean_D, config, place)
        for name, share_E in shares.items():
            metrics[f"{config.ways}-way {shots}-shot/{name}"] = mean_of(share_E)
    details = {
        "ways": config.ways, "shots": list(config.shots), "queries": config.queries, "episodes": config.episodes,
        "classes": used, "dimensions": int(table.features_ND.shape[1]),
    }  # fmt: skip
    return metrics, details


def draw_episodes(labels_N: Int, classes: tuple[str, ...], shots: int, config: FewShotConfig) -> tuple[Int, int]:
    """Return rows (E, W, S + Q), the shots first, and the number of classes that episodes are drawn from.

    Every episode draws W classes without replacement, then S + Q images of each: Floyd's sampling of all episodes side
    by side, shuffled, so that each image is as likely a shot as a query. Keyed by (seed, shots, episode).

    Raises:
        DataError: when fewer than W classes have S + Q images.
    """
    need, ways, count = shots + config.queries, config.ways, config.episodes
    order = np.argsort(labels_N, kind="stable")
    present, starts, sizes = np.unique(labels_N[order], return_index=True, return_counts=True)
    enough = sizes >= need
    if int(enough.sum()) < ways:
        worst = int(present[np.argmin(sizes)])
        name = classes[worst] if worst < len(classes) else str(worst)
        raise DataError(
            f"{int(enough.sum())} of {len(present)} classes have the {need} images that {shots} shots and "
            f"{config.queries} queries need, and an episode takes {ways} classes (class '{name}' has {sizes.min()} "
            "images). Lower --ways, --shots or --queries."
        )
    starts, sizes = starts[enough], sizes[enough]
    episode = np.arange(count)
    chosen_EW = uniforms(key(config.seed, "episode-classes", shots, episode), len(sizes)).argsort(1)[:, :ways]
    size_EW = sizes[chosen_EW]
    keys_EW = key(config.seed, "episode-images", shots, episode[:, None], np.arange(ways)[None, :])
    u = uniforms(keys_EW, 2 * need)
    taken = np.empty((count, ways, need), dtype=np.int64)
    for j in range(need):  # Floyd: the j-th of `need` from the first size - need + j + 1, or the last of those
        last_EW = size_EW - need + j
        drawn_EW = (u[..., j] * (last_EW + 1)).astype(np.int64)
        again = (taken[..., :j] == drawn_EW[..., None]).any(-1)
        taken[..., j] = np.where(again, last_EW, drawn_EW)
    taken = np.take_along_axis(taken, u[..., need:].argsort(-1), axis=-1)
    return order[starts[chosen_EW][..., None] + taken], int(enough.sum())


def classify(
    features_ND: Tensor, rows_EWM: Int, shots: int, mean_D: Tensor | None, config: FewShotConfig, place: torch.device
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the accuracy in percent of every episode, by classifier; episodes go through in blocks that fit memory."""
    _, ways, images = rows_EWM.shape
    block = max(1, _BYTES // (4 * ways * images * features_ND.shape[1]))
    target_M = torch.arange(ways, device=place).repeat_interleave(images - shots)
    found: dict[str, list[Tensor]] = {name: [] for name in config.classifiers}
    for rows in torch.from_numpy(rows_EWM).split(block):
        x = features_ND[rows.to(features_ND.device)].to(place)
        if mean_D is not None:
            x = x - mean_D.to(place)
        if config.unit_length:
            x = F.normalize(x, dim=-1)
        support, query = x[:, :, :shots], x[:, :, shots:].flatten(1, 2)
        for name, hits in found.items():
            logits = (
                ridge_logits(support, query, config.penalty)
                if name == "ridge"
                else centroid_logits(support, query, cosine=name == "cosine")
            )
            hits.append(100.0 * (logits.argmax(-1) == target_M).double().mean(1))
    return {name: torch.cat(hits).cpu().numpy() for name, hits in found.items()}
