"""Line charts as data, drawn as SVG for the page and as a picture for PNG files, by the same geometry."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from imprint.viz.colours import category, rgb
from imprint.viz.raster import Picture

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 34
POINTS = 500


@dataclass(frozen=True)
class Series:
    """One line: a name and its points, x ascending; non-finite values leave a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """Lines over one axis.

    Attributes:
        title: shown above.
        series: the lines.
        unit: appended to values in tooltips (`%`, `MB`, ...).
        x_label: name of the x axis.
        dots: mark every point (few, far apart).
        log: logarithmic y axis (positive values only).
        colours: one per line; empty takes the first categories.
        scatter: points that are not joined, with room around them.
        y_label: name of the y axis.
    """

    title: str
    series: tuple[Series, ...]
    unit: str = ""
    x_label: str = "step"
    dots: bool = False
    log: bool = False
    colours: tuple[str, ...] = ()
    scatter: bool = False
    y_label: str = ""

    def colour(self, i: int) -> str:
        """Return the colour of line `i`."""
        return self.colours[i] if self.colours else category(i)


@dataclass(frozen=True)
class Frame:
    """Where values lie on the canvas, in pixels from the top left."""

    x0: float
    x1: float
    y0: float
    y1: float
    log: bool = False
    x_ticks: tuple[float, ...] = field(default=())
    y_ticks: tuple[float, ...] = field(default=())

    def px(self, x: float) -> float:
        """Return the horizontal pixel of `x`."""
        return LEFT + (x - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        """Return the vertical pixel of `y`."""
        v = math.log10(y) if self.log else y
        return HEIGHT - BOTTOM - (v - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Return round values (1, 2 or 5 times a power of ten apart) inside [low, high], about `count` of them."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return (low,)
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1))


def label(value: float) -> str:
    """Return a number the way axes show it: 4 digits, k and M for large ones, powers of ten for tiny ones."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if size != 0 and size < 1e-3:
        return f"{value:.2g}"
    return f"{value:.4g}"


def thinned(x: Sequence[float], y: Sequence[float], limit: int = POINTS) -> tuple[list[float], list[float]]:
    """Return at most about `limit` points: per bucket the lowest and the highest value, so that spikes stay."""
    if len(x) <= limit:
        return list(x), list(y)
    values = np.asarray(y, dtype=np.float64)
    kept = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), limit // 2):
        finite = part[np.isfinite(values[part])]
        pick = finite if finite.size else part
        shown = np.nan_to_num(values[pick])
        kept |= {int(pick[shown.argmin()]), int(pick[shown.argmax()])}
    order = sorted(kept)
    return [x[i] for i in order], [y[i] for i in order]


def frame(chart: Chart) -> Frame | None:
    """Return the geometry that holds all finite values of a chart, or None when there are none."""
    every = [point for s in chart.series for point in zip(s.x, s.y, strict=True)]
    points = [(a, b) for a, b in every if math.isfinite(a) and math.isfinite(b) and (b > 0 or not chart.log)]
    if not points:
        return None
    xs, ys = [p[0] for p in points], [math.log10(p[1]) if chart.log else p[1] for p in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    if x0 == x1:
        x0, x1 = x0 - 0.5, x1 + 0.5
    elif chart.scatter:
        x0, x1 = x0 - 0.04 * (x1 - x0), x1 + 0.04 * (x1 - x0)
    pad = 0.06 * (y1 - y0) or 0.05 * abs(y0) or 1.0
    floor = 0.0 if y0 >= 0 and not chart.log else -math.inf
    y0, y1 = max(floor, y0 - pad), y1 + pad
    y_ticks = ticks(y0, y1)
    if chart.log:
        whole = [v for v in y_ticks if abs(v - round(v)) < 1e-9]
        y_ticks = tuple(10.0**v for v in (whole or y_ticks))
    return Frame(x0, x1, y0, y1, chart.log, ticks(x0, x1, 6), y_ticks)


def svg(chart: Chart) -> str:
    """Return the chart as inline SVG, coloured by the page's style sheet, with its points as JSON for the tooltip."""
    box = frame(chart)
    if box is None:
        return '<p class="reason">No finite values.</p>'
    parts = []
    for y in box.y_ticks:
        at = box.py(y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{label(y)}</text>')
    for x in box.x_ticks:
        at = box.px(x)
        below = HEIGHT - BOTTOM + 17
        parts.append(f'<text class="tick" x="{at:.1f}" y="{below}" text-anchor="middle">{label(x)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    x_label = html.escape(chart.x_label)
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{x_label}</text>')
    if chart.y_label:
        parts.append(f'<text class="tick" x="4" y="{TOP - 1}">{html.escape(chart.y_label)}</text>')
    data = []
    for i, line in enumerate(chart.series):
        xs, ys = thinned(line.x, line.y)
        strokes, dots = _strokes(box, xs, ys, chart.dots, chart.scatter)
        parts += [f'<polyline class="line" style="stroke:{chart.colour(i)}" points="{points}"/>' for points in strokes]
        parts += [f'<circle class="dot" style="fill:{chart.colour(i)}" cx="{x}" cy="{y}" r="3"/>' for x, y in dots]
        shown = [
            [a, b, round(box.px(a), 1), round(box.py(b), 1)]
            for a, b in zip(xs, ys, strict=True)
            if math.isfinite(b) and not (chart.log and b <= 0)
        ]
        data.append({"name": line.name, "colour": chart.colour(i), "points": shown})
    told: dict[str, Any] = {"unit": chart.unit, "x": chart.x_label, "series": data}
    if chart.scatter:
        told |= {"scatter": True, "y": chart.y_label}
    payload = html.escape(json.dumps(told), quote=True)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(chart.title, quote=True)}" data-chart="{payload}">{"".join(parts)}'
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="-9" x2="-9"/></svg>'
    )


def draw(chart: Chart, scale: int = 2) -> Picture:
    """Return the chart as a picture on white, `scale` times 560 x 250 pixels, with its title and legend."""
    top = 26
    canvas = np.full(((HEIGHT + top) * scale, WIDTH * scale, 3), 255, np.uint8)

    def at(x: float, y: float) -> tuple[int, int]:
        return round(x * scale), round((y + top) * scale)

    def write(text: str, x: float, y: float, colour: tuple[int, int, int], right: bool = False) -> None:
        text = text.encode("ascii", "replace").decode()
        size = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * scale, 1)[0][0]
        place = at(x, y)
        place = (place[0] - (size if right else 0), place[1])
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4 * scale, colour, 1, cv2.LINE_AA)

    write(chart.title, 8, -10, (20, 20, 20))
    box = frame(chart)
    if box is None:
        return canvas
    for y in box.y_ticks:
        cv2.line(canvas, at(LEFT, box.py(y)), at(WIDTH - RIGHT, box.py(y)), (228, 228, 228), 1, cv2.LINE_AA)
        write(label(y), LEFT - 6, box.py(y) + 4, (90, 90, 90), right=True)
    for x in box.x_ticks:
        write(label(x), box.px(x) + 8, HEIGHT - BOTTOM + 17, (90, 90, 90), right=True)
    write(chart.x_label, WIDTH - RIGHT, HEIGHT - 4, (90, 90, 90), right=True)
    for i, line in enumerate(chart.series):
        xs, ys = thinned(line.x, line.y)
        strokes, dots = _strokes(box, xs, ys, chart.dots, chart.scatter)
        for stroke in strokes:
            points = [at(*map(float, pair.split(","))) for pair in stroke.split()]
            cv2.polylines(canvas, [np.array(points, np.int32)], False, rgb(chart.colour(i)), scale, cv2.LINE_AA)
        for x, y in dots:
            cv2.circle(canvas, at(x, y), 3 * scale, rgb(chart.colour(i)), -1, cv2.LINE_AA)
        write(line.name, WIDTH - RIGHT - 120 * (len(chart.series) - 1 - i), -10, rgb(chart.colour(i)), right=True)
    return canvas


def _strokes(
    box: Frame, xs: list[float], ys: list[float], dots: bool, apart: bool = False
) -> tuple[list[str], list[tuple[float, float]]]:
    """Return unbroken runs of finite points as SVG point lists, and the points that need a dot to be seen."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y) and not (box.log and y <= 0):
            runs[-1].append((round(box.px(x), 1), round(box.py(y), 1)))
        elif runs[-1]:
            runs.append([])
    runs = [run for run in runs if run]
    if apart:
        return [], [p for run in runs for p in run]
    marked = [p for run in runs for p in run if dots or len(run) == 1]
    return [" ".join(f"{x},{y}" for x, y in run) for run in runs if len(run) > 1], marked
