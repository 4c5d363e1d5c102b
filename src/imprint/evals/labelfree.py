"""What can be said of an embedding without one label: how many dimensions it uses, and how it is spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import key, permuted
from imprint.data.sources import Source, spread
from imprint.data.views import Crop, Look, View
from imprint.evals.features import extract_for, stream
from imprint.evals.protocol import EvalData, Protocol, ProtocolConfig, describe, timed
from imprint.evals.report import Metric, Report
from imprint.losses.info_nce import info_nce
from imprint.ops import moments as sums
from imprint.ops import ranks

GROUPS = 20
WIDEST = 1024
PAIRED = 25_600


@dataclass(frozen=True, kw_only=True)
class LabelFreeConfig(ProtocolConfig):
    """Settings of the measures.

    Attributes:
        images: at most this many, spread evenly over the source (RankMe's paper: 25,600).
        lidar_images: images whose augmentations LiDAR, the alignment and the InfoNCE bound compare; 0 leaves them out.
        lidar_views: augmentations of each, at least 2.
        infonce_temperature: tau of the bound's critic, cosine / tau (SimCLR's 0.1, arXiv 2002.05709, Table 5).
        alpha_start: first eigenvalue of alpha-ReQ's fit, counted from 0.
        alpha_stop: one past the last.
    """

    images: int = 25_600
    lidar_images: int = 1000
    lidar_views: int = 10
    infonce_temperature: float = 0.1
    alpha_start: int = 10
    alpha_stop: int = 100

    def __post_init__(self) -> None:
        """Check the counts."""
        super().__post_init__()
        if self.images < 2 or self.lidar_images < 0 or self.lidar_views < 2:
            raise ConfigError("label-free measures need at least 2 images and 2 augmentations of each.")
        if not (math.isfinite(self.infonce_temperature) and self.infonce_temperature > 0):
            raise ConfigError(f"the temperature of the InfoNCE bound must be above 0, got {self.infonce_temperature}.")


def augmentations(image_size: int, count: int) -> View:
    """Return `count` crops with SimCLR's look (arXiv 2002.05709, Appendix A), the crop covering 20 % or more."""
    look = Look(
        flip=0.5, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2,
        blur=0.5 if image_size > 64 else 0.0,
    )  # fmt: skip
    return View(name="augmented", count=count, crop=Crop(size=image_size, scale=(0.2, 1.0)), look=look)


@dataclass(frozen=True)
class Measured:
    """Measures of one table of features.

    Attributes:
        metrics: numbers with 95 % intervals.
        left_out: why a measure is missing, by name.
        no_interval: why the ranks have no interval, or "".
    """

    metrics: dict[str, Metric]
    left_out: dict[str, str]
    no_interval: str = ""


def measure(features_ND: Tensor, config: LabelFreeConfig | None = None) -> dict[str, float]:
    """Return the measures of one table of features; those that it is too small for are left out.

    `rankme`, `effective_rank` and `alpha_req` by name; `std` is sqrt(D) times the mean per-dimension standard
    deviation of the normalised features (about 1 when spread, 0 at collapse), `std_min` the same of the least
    dimension; `uniformity` is at most 0, lower is more even.
    """
    found = measure_features(features_ND, config or LabelFreeConfig())
    return {name: metric.value for name, metric in found.metrics.items()}


def measure_features(features_ND: Tensor, config: LabelFreeConfig) -> Measured:
    """Return the measures of one table with intervals by the delete-a-group jackknife over 20 random groups of images.

    One pass in float64 whose memory does not grow with N; the uniformity pairs at most 25,600 rows, spread evenly.
    Tables with fewer rows than dimensions, whose ranks the rows bound, and those wider than 1,024, whose eigenvalues
    cost seconds, get no intervals of ranks.
    """
    count, width = features_ND.shape
    place = features_ND.device
    if count <= width:
        why = f"{count} images of {width} dimensions: the number of images bounds every rank."
    elif width > WIDEST:
        why = f"{width} dimensions: eigenvalues of {GROUPS} parts of the images would take minutes."
    elif count < 5 * GROUPS:
        why = f"{count} images are too few for {GROUPS} groups of them."
    else:
        why = ""
    group_N = random_groups(count, 1 if why else GROUPS, config.seed)
    few = torch.from_numpy(spread(count, PAIRED)).to(place) if count > PAIRED else None
    part_ND = features_ND if few is None else features_ND[few]
    pairs_N = random_groups(len(part_ND), min(GROUPS, len(part_ND) // 2), config.seed)
    sizes_G = torch.bincount(pairs_N)
    table = _Table(features_ND, group_N, config)
    measures: dict[str, Callable[[], Metric]] = {
        "rankme": table.rankme,
        "effective_rank": table.effective_rank,
        "alpha_req": table.alpha_req,
        "std": lambda: table.std("mean"),
        "std_min": lambda: table.std("min"),
        "uniformity": lambda: _uniformity(part_ND, pairs_N, sizes_G),
    }
    if not table.finite:
        return Measured({}, dict.fromkeys(measures, "the features are not finite."))
    metrics: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    for name, fn in measures.items():
        try:
            metric = fn()
        except DataError as error:
            left_out[name] = str(error)
            continue
        if math.isfinite(metric.value):
            metrics[name] = metric
        else:
            left_out[name] = "not finite: the features are constant or not finite themselves."
    return Measured(metrics, left_out, why)


def random_groups(count: int, groups: int, seed: int) -> Tensor:
    """Return a group in [0, groups) per row, at random and of equal sizes to one row, int64 (count,)."""
    groups = max(1, groups)
    return torch.from_numpy(permuted(np.arange(count), count, key(seed, "groups")) % groups)


class _Table:
    """The ranks and the spread of a table: from float64 sums, or from the rows where those are fewer than columns."""

    def __init__(self, features_ND: Tensor, group_N: Tensor, config: LabelFreeConfig) -> None:
        self.config, self.count = config, len(features_ND)
        if self.count < 2 or features_ND.shape[1] == 0:
            raise DataError(f"label-free measures need at least 2 rows of features, got {tuple(features_ND.shape)}.")
        self.small = features_ND if self.count <= features_ND.shape[1] else None
        self.moments = sums.moments(features_ND, group_N) if self.small is None else None
        self.scale = math.sqrt(features_ND.shape[1])
        judged = features_ND if self.moments is None else self.moments.total.gram_DD
        self.finite = bool(torch.isfinite(judged).all())

    def rankme(self) -> Metric:
        if self.small is not None:
            return self._plain(ranks.rankme(self.small))
        return self._metric(lambda s: ranks.rankme_from(s.singular_values()))

    def effective_rank(self) -> Metric:
        if self.small is not None:
            return self._plain(ranks.effective_rank(self.small))
        return self._metric(lambda s: ranks.entropy_rank(s.centred_powers().sqrt()))

    def alpha_req(self) -> Metric:
        def alpha(powers_D: Tensor) -> Tensor:
            alive_D = powers_D[powers_D > 1e-13 * powers_D[0]]
            return ranks.power_law(alive_D / alive_D.sum(), self.config.alpha_start, self.config.alpha_stop).alpha

        if self.small is not None:
            return self._plain(alpha(ranks.eigenspectrum(self.small)))
        return self._metric(lambda s: alpha(s.centred_powers()))

    def std(self, which: str) -> Metric:
        def pick(std_D: Tensor) -> Tensor:
            return (std_D.mean() if which == "mean" else std_D.min()) * self.scale

        if self.small is not None:
            return self._plain(pick(ranks.per_dimension_std(self.small)))
        return self._metric(lambda s: pick(s.std()))

    def _plain(self, value: Tensor) -> Metric:
        return Metric(value=float(value), n=self.count)

    def _metric(self, of: Callable[[sums.Sums], Tensor]) -> Metric:
        assert self.moments is not None
        value = float(of(self.moments.total))
        low, high = self.moments.jackknife(of) or (None, None) if math.isfinite(value) else (None, None)
        return Metric(value=value, low=low, high=high, n=self.count)


def _uniformity(features_ND: Tensor, group_N: Tensor, sizes_G: Tensor) -> Metric:
    cells_GG = sums.pair_sums(features_ND, group_N)
    value = float(sums.uniformity_of(cells_GG, sizes_G))
    if len(sizes_G) < GROUPS or not math.isfinite(value):
        return Metric(value=value, n=len(features_ND))
    left = torch.stack([sums.uniformity_of(cells_GG, sizes_G, g) for g in range(len(sizes_G))])
    low, high = sums.jackknife(value, left)
    return Metric(value=value, low=low, high=min(0.0, high), n=len(features_ND))


def measure_augmented(looks_NQD: Tensor, config: LabelFreeConfig) -> dict[str, Metric]:
    """Return LiDAR over all augmentations, and the alignment and the InfoNCE bound of the first two.

    Intervals by the delete-a-group jackknife over 20 groups of images, from 100 images on (LiDAR up to 1,024
    dimensions); of the alignment, a mean over images, the normal one.
    """
    count, _, width = looks_NQD.shape
    groups = GROUPS if count >= 5 * GROUPS else 1
    order = torch.argsort(random_groups(count, groups, config.seed), stable=True).to(looks_NQD.device)
    looks_NQD = looks_NQD[order]  # a source sorted by class must not give groups of one class
    parts = [sums.scatter(part) for part in torch.tensor_split(looks_NQD, groups if width <= WIDEST else 1)]
    whole = sums.scatter(looks_NQD) if len(parts) > 1 else parts[0]

    def lidar(of: sums.Scatter) -> Tensor:
        return ranks.lidar_from(*of.between_and_within()).value

    value = float(lidar(whole))
    ends = sums.jackknife(value, torch.stack([lidar(whole.minus(p)) for p in parts])) if len(parts) > 1 else None
    gaps_N = (torch.nn.functional.normalize(looks_NQD[:, :2].float(), dim=2).diff(dim=1)[:, 0]).square().sum(1)
    mean = float(gaps_N.mean())
    half = 1.96 * float(gaps_N.std()) / math.sqrt(count)
    return {
        "lidar": Metric(value=value, low=ends[0] if ends else None, high=ends[1] if ends else None, n=count),
        "alignment": Metric(value=mean, low=max(0.0, mean - half), high=mean + half, n=count),
        "infonce_bound": infonce_bound(looks_NQD[:, 0], looks_NQD[:, 1], config.infonce_temperature, groups),
    }


def infonce_bound(x_ND: Tensor, y_ND: Tensor, temperature: float, groups: int = 1) -> Metric:
    r"""Return log N - loss, in nats: a lower bound on the mutual information of two augmentations' features.

    I(X; Y) >= log N - L, L the InfoNCE of N images with critic cosine / tau (CPC, arXiv 1807.03748, Eq. 9), the mean
    of both directions. It never exceeds log N, whatever the information, and is looser for other temperatures than the
    best; negative when the critic is worse than guessing. The interval is that of the mean over groups of rows.
    """
    count = len(x_ND)

    def loss(queries_ND: Tensor, keys_ND: Tensor, start: int, stop: int) -> Tensor:
        rows = slice(start, stop)
        return info_nce(queries_ND[rows], keys_ND[rows], temperature, k_all=keys_ND, offset=start)

    edges = [round(i * count / groups) for i in range(groups + 1)]
    sizes = torch.tensor([b - a for a, b in zip(edges, edges[1:], strict=False)], dtype=torch.float64)
    with torch.no_grad():
        spans = list(zip(edges, edges[1:], strict=False))
        means = torch.stack([(loss(x_ND, y_ND, a, b) + loss(y_ND, x_ND, a, b)) / 2 for a, b in spans]).double().cpu()
    value = math.log(count) - float((means * sizes).sum() / count)
    if groups < 2:
        return Metric(value=value, n=count)
    low, high = sums.jackknife(value, math.log(count) - ((means * sizes).sum() - means * sizes) / (count - sizes))
    return Metric(value=value, low=low, high=min(high, math.log(count)), n=count)


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
            seed=config.seed,
        )
    ]
    return torch.cat(parts)


class LabelFree(Protocol):
    """RankMe (main), LiDAR, alpha-ReQ, effective rank, spread, uniformity, alignment, InfoNCE bound of one source."""

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
            found = measure_features(table.tensor, config)
        metrics = dict(found.metrics)
        few = min(config.lidar_images, len(chosen))
        if few >= 2:
            with timed(cost, "augmented_features_s"):
                part = chosen.subset(spread(len(chosen), few))
                looks_NQD = augmented_features(encoder, part, data, config)
            with timed(cost, "measure_s"):
                metrics |= measure_augmented(looks_NQD, config)
            cost["images"] += float(looks_NQD.shape[0] * looks_NQD.shape[1])
        details: dict[str, Any] = {
            "dimensions": int(table.features_ND.shape[1]),
            "lidar_images": few,
            "lidar_views": config.lidar_views,
            "infonce_temperature": config.infonce_temperature,
            "infonce_critic": "cosine / temperature, both directions, in nats; at most log N",
            "left_out": found.left_out,
            "no_interval": found.no_interval,
        }
        return Report(
            protocol=self.name,
            encoder=encoder.name,
            data={"train": describe(source)},
            metrics=metrics,
            main="rankme",
            details=details,
            cost=cost,
        )
