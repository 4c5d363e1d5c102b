"""Confidence intervals for shares."""

from __future__ import annotations

import math

from imprint.evals.report import Metric


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
