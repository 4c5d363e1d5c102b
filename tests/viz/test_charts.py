"""Geometry of charts, and both ways of drawing them."""

from __future__ import annotations

import html
import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from imprint.viz.charts import Chart, Series, draw, frame, label, svg, thinned, ticks
from imprint.viz.colours import category, heat, rgb


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.7), (-3, 12), (1e-6, 5e-6), (0, 123456), (99.9, 100.1)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    step = found[1] - found[0]
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6
    assert np.allclose(np.diff(found), step)
    assert ticks(3.0, 3.0) == (3.0,)


def test_labels() -> None:
    assert [label(v) for v in (0, 0.25, 1500, 25_000, 3_000_000, 2e-5)] == ["0", "0.25", "1500", "25k", "3M", "2e-05"]


def test_thinning_keeps_spikes_and_ends() -> None:
    y = [0.0] * 10_000
    y[7777], y[1234] = 99.0, -99.0
    xs, ys = thinned(list(range(10_000)), y, 500)
    assert len(xs) <= 510 and xs[0] == 0 and xs[-1] == 9999
    assert 99.0 in ys and -99.0 in ys and xs == sorted(xs)


def test_points_lie_where_the_axes_say() -> None:
    box = frame(Chart("t", (Series("a", (0, 10), (0, 100)),)))
    assert box is not None
    assert box.px(0) == 58 and box.px(10) == 546 and box.py(0) > box.py(100)
    assert box.px(5) == pytest.approx((58 + 546) / 2)
    logged = frame(Chart("t", (Series("a", (0, 1, 2), (1e-3, 1, -5)),), log=True))
    assert logged is not None and logged.py(1e-3) > logged.py(1) and 0.1 in logged.y_ticks
    assert frame(Chart("t", (Series("a", (1,), (math.nan,)),))) is None


def test_svg_is_well_formed_leaves_gaps_and_escapes() -> None:
    hostile = '</svg><script>alert(1)</script>"'
    chart = Chart(hostile, (Series(hostile, (0, 1, 2, 3, 4, 5), (1, 2, math.nan, 4, 5, math.inf)),), unit=" %")
    text = svg(chart)
    root = ElementTree.fromstring(text)
    assert "<script" not in text
    assert len([e for e in root if e.tag == "polyline"]) == 2
    data = json.loads(html.unescape(re.search(r'data-chart="([^"]*)"', text).group(1)))
    assert data["series"][0]["name"] == hostile and [p[:2] for p in data["series"][0]["points"]] == [
        [0, 1],
        [1, 2],
        [3, 4],
        [4, 5],
    ]
    assert "No finite" in svg(Chart("x", ()))


def test_single_points_are_seen() -> None:
    root = ElementTree.fromstring(svg(Chart("t", (Series("a", (3,), (2.0,)),))))
    assert len([e for e in root if e.get("class") == "dot"]) == 1


def test_picture_shows_the_line_in_its_colour() -> None:
    image = draw(Chart("Loss", (Series("a", (0, 1), (0, 1)),)))
    assert image.dtype == np.uint8 and image.shape[2] == 3
    close = np.abs(image.astype(int) - rgb(category(0))).sum(2) < 30
    assert close.sum() > 300
    assert (draw(Chart("empty", ())) == 255).mean() > 0.95


def test_colours() -> None:
    assert len({category(i) for i in range(60)}) == 60
    ramp = heat(np.linspace(0, 1, 20)).astype(int).sum(1)
    assert (np.diff(ramp) >= 0).all() and heat(np.nan).tolist() == heat(0.0).tolist()
