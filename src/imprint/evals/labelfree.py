"""What can be said of an embedding without one label: how many dimensions it uses, and how it is spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.sources import Source, spread
from imprint.data.views import Crop, Look, View
from imprint.evals.features import extract_for, stream
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, timed
from imprint.evals.report import Metric, Report
from imprint.ops import ranks


@dataclass(frozen=True, kw_only=True)
class LabelFreeConfig(ProtocolConfig):
    """Settings of the measures.

    Attributes:
        images: at most this many, spread evenly over the source (RankMe's paper: 25,600).
        lidar_images: images whose augmentations LiDAR and the alignment compare; 0 leaves both out.
        lidar_views: augmentations of each, at least 2.
        alpha_start: first eigenvalue of alpha-ReQ's fit, counted from 0.
        alpha_stop: one past the last.
    """

    images: int = 25_600
    lidar_images: int = 1000
    lidar_views: int = 10
    alpha_start: int = 10
    alpha_stop: int = 100

    def __post_init__(self) -> None:
        """Check the counts."""
        super().__post_init__()
        if self.images < 2 or self.lidar_images < 0 or self.lidar_views < 2:
            raise ConfigError("label-free measures need at least 2 images and 2 augmentations of each.")


def augmentations(image_size: int, count: int) -> View:
    """Return `count` crops with SimCLR's look (arXiv 2002.05709, Appendix A), the crop covering 20 % or more."""
    look = Look(
        flip=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2,
        blur=0.5 if image_size > 64 else 0.0,
    )  # fmt: skip
    return View(name="augmented", count=count, crop=Crop(size=image_size, scale=(0.2, 1.0)), look=look)


def measure(features_ND: Tensor, config: LabelFreeConfig | None = None) -> dict[str, float]:
    """Return the measures of one table of features; those that it is too small for are left out.

    `rankme`, `effective_rank` and `alpha_req` by name; `std` is sqrt(D) times the mean per-dimension standard
    deviation of the normalised features (about 1 when spread, 0 at collapse), `std_min` the same of the least
    dimension; `uniformity` is at most 0, lower is more even.
    """
    config = config or LabelFreeConfig()
    return _measure(features_ND, config)[0]


def _measure(features_ND: Tensor, config: LabelFreeConfig) -> tuple[dict[str, float], dict[str, str]]:
    width = features_ND.shape[1]
    spread_D = ranks.per_dimension_std(features_ND) * math.sqrt(width)
    measures: dict[str, Callable[[], Tensor]] = {
        "rankme": lambda: ranks.rankme(features_ND),
        "effective_rank": lambda: ranks.effective_rank(features_ND),
        "alpha_req": lambda: ranks.alpha_req(features_ND, config.alpha_start, config.alpha_stop).alpha,
        "std": lambda: spread_D.mean(),
        "std_min": lambda: spread_D.min(),
        "uniformity": lambda: ranks.uniformity(features_ND),
    }
    values: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, fn in measures.items():
        try:
            value = float(fn())
        except DataError as error:
            left_out[name] = str(error)
            continue
        if math.isfinite(value):
            values[name] = value
        else:
            left_out[name] = "not finite: the features are constant or not finite themselves."
    return values, left_out


def augmented_features(encoder: Encoder, source: Source, data: EvalData, config: LabelFreeConfig) -> Tensor:
    """Return features of several augmentations per image, float32 (N, Q, D)."""
    view = augmentations(config.image_size or encoder.image_size, config.lidar_views)
    parts = [
        features.transpose(0, 1).cpu()
        for features, _ in stream(
            encoder,
            source,
            view=view,
            normalise=data.normalise,
            batch_size=max(1, config.batch_size // config.lidar_views),
            workers=config.workers,
            device=config.device,
            precision=config.precision,
            tokens=config.tokens,
            layers=config.layers,
        )
    ]
    return torch.cat(parts)


class LabelFree(Protocol):
    """RankMe (main), LiDAR, alpha-ReQ, effective rank, spread, uniformity and alignment of one source."""

    name: ClassVar[str] = "labelfree"
    Config: ClassVar[type[ProtocolConfig]] = LabelFreeConfig

    def run(self, encoder: Encoder, data: EvalData, config: LabelFreeConfig | None = None) -> Report:
        """Measure `data.train`; `data.test` and labels are not looked at."""
        config = config or LabelFreeConfig()
        source: Source = data.train
        if len(source) < 2:
            raise DataError(f"'{source.spec}' has {len(source)} images; label-free measures need at least 2.")
        chosen = source if len(source) <= config.images else source.subset(spread(len(source), config.images))
        cost: dict[str, float] = {"images": float(len(chosen))}
        with timed(cost, "features_s"):
            table = extract_for(encoder, chosen, data.normalise, config)
        with timed(cost, "measure_s"):
            values, left_out = _measure(table.tensor, config)
        few = min(config.lidar_images, len(chosen))
        if few >= 2:
            with timed(cost, "augmented_features_s"):
                part = chosen.subset(spread(len(chosen), few))
                looks_NQD = augmented_features(encoder, part, data, config)
            with timed(cost, "measure_s"):
                values["lidar"] = float(ranks.lidar(looks_NQD).value)
                values["alignment"] = float(ranks.alignment(looks_NQD[:, 0], looks_NQD[:, 1]))
            cost["images"] += float(looks_NQD.shape[0] * looks_NQD.shape[1])
        details: dict[str, Any] = {
            "dimensions": int(table.features_ND.shape[1]),
            "lidar_images": few,
            "lidar_views": config.lidar_views,
            "left_out": left_out,
        }
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(source)},
            metrics={
                name: Metric(value=value, n=few if name in ("lidar", "alignment") else len(table))
                for name, value in values.items()
            },
            main="rankme",
            details=details,
            cost=cost,
        )
