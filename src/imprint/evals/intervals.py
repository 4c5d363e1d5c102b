"""95 % intervals: of shares, of means over episodes or draws, and of any statistic by the bootstrap.

Shapes: N independent units (images, sequences, episodes), X numbers of each, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from imprint.core.rng import seed_of
from imprint.evals.report import Metric

F64 = npt.NDArray[np.float64]
_CHUNK = 1 << 24  # resampling counts held at a time


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval of a share, in [0, 1].

    (p + z^2/2n ± z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = hits/n (Wilson 1927). Unlike the normal interval it
    stays inside [0, 1] and is sound for few samples and shares near the ends; n = 0 gives (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = (centre - half) / scale if hits > 0 else 0.0
    high = (centre + half) / scale if hits < n else 1.0
    return low, high


def accuracy(hits: int, n: int) -> Metric:
    """Return an accuracy in percent with its 95 % Wilson interval."""
    low, high = wilson(hits, n)
    return Metric(value=100.0 * hits / max(1, n), low=100.0 * low, high=100.0 * high, n=n)


def mean_of(values_N: npt.ArrayLike) -> Metric:
    """Return the mean with its interval mean ± t s / sqrt(n), t the .975 quantile of Student's t with n - 1 degrees.

    For the hundreds of episodes of a few-shot evaluation t is 1.96, for three draws 4.30. One value has no interval.

    Raises:
        ValueError: without any value.
    """
    values = np.asarray(values_N, dtype=np.float64).reshape(-1)
    if not values.size:
        raise ValueError("the mean of nothing was asked for")
    mean = float(values.mean())
    if values.size == 1:
        return Metric(value=mean, n=1)
    half = float(stdtrit(values.size - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Metric(value=mean, low=mean - half, high=mean + half, n=values.size)


def bootstrap(
    items_NX: npt.ArrayLike,
    statistic: Callable[[F64], F64] | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Metric:
    """Return a statistic of summed items with its percentile-bootstrap interval over the N items (Efron 1979).

    Every resample draws N items with replacement; what is drawn are the counts, so the sums of all resamples are one
    matrix product. A mean needs no statistic; mIoU is `items` = each image's confusion matrix, flattened, and a
    statistic from summed matrices to mIoU.

    Args:
        items_NX: numbers of every independent unit, (N) or (N, X).
        statistic: maps sums (R, X) to (R); None takes the mean (X = 1). NaN results are left out of the quantiles.
        seed: of the resampling.
        resamples: R.

    Raises:
        ValueError: for no items, or several numbers each without a statistic.
    """
    items = np.asarray(items_NX, dtype=np.float64)
    items = items.reshape(len(items), -1)
    count = len(items)
    if not count:
        raise ValueError("a bootstrap over nothing was asked for")
    if statistic is None:
        if items.shape[1] != 1:
            raise ValueError("items of several numbers need a statistic")
        statistic = _mean_over(count)
    value = float(statistic(items.sum(0, keepdims=True))[0])
    if count == 1:
        return Metric(value=value, n=1)
    generator = np.random.default_rng(seed_of(seed, "bootstrap"))
    found = []
    rows = max(1, _CHUNK // count)
    for first in range(0, resamples, rows):
        draws = generator.integers(0, count, (min(rows, resamples - first), count))
        flat = draws + count * np.arange(len(draws))[:, None]
        counts = np.bincount(flat.reshape(-1), minlength=len(draws) * count).reshape(len(draws), count)
        found.append(statistic(counts.astype(np.float64) @ items))
    low, high = np.nanquantile(np.concatenate(found), (0.025, 0.975))
    return Metric(value=value, low=float(low), high=float(high), n=count)


def class_shares(hits_N: npt.ArrayLike, labels_N: npt.NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    """Return the accuracy in percent of every class that occurs, by name (its number where it has none)."""
    size = max(len(classes), int(labels_N.max()) + 1 if labels_N.size else 0)
    sizes = np.bincount(labels_N, minlength=size)
    hits = np.bincount(labels_N, weights=np.asarray(hits_N, dtype=np.float64), minlength=size)
    return {
        str(classes[k] if k < len(classes) else k): round(100.0 * float(hits[k]) / int(sizes[k]), 3)
        for k in np.flatnonzero(sizes).tolist()
    }


def _mean_over(count: int) -> Callable[[F64], F64]:
    return lambda sums_RX: np.asarray(sums_RX[:, 0] / count)
