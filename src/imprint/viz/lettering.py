"""Words on pictures: headings above the columns of a sheet and names beside its rows, in Pillow's built-in type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imprint.viz.raster import Picture, sheet

INK = (40, 40, 40)
SIZE = 13
"""Height of the letters in pixels."""


def line_of(words: str, width: int | None = None, size: int = SIZE) -> Picture:
    """Return one line of text on white; with `width` the text is cut to it (with dots) and the picture is that wide."""
    font = ImageFont.load_default(size)
    words = " ".join(words.encode("utf-8", "replace").decode("utf-8", "replace").split())
    if width is not None and font.getlength(words) > width:
        while words and font.getlength(words + "...") > width:
            words = words[:-1]
        words += "..."
    high = size + 6
    canvas = Image.new("RGB", (width or max(1, int(np.ceil(font.getlength(words)))), high), (255, 255, 255))
    ImageDraw.Draw(canvas).text((0, 1), words, fill=INK, font=font)
    return np.asarray(canvas, dtype=np.uint8)


def lettered(
    rows: Sequence[Sequence[Picture]],
    *,
    columns: Sequence[str] = (),
    names: Sequence[str] = (),
    title: str = "",
    gap: int = 4,
) -> Picture:
    """Return a sheet with a heading above each column and a line of text above each row.

    Args:
        rows: pictures, as for `raster.sheet`.
        columns: headings; fewer than columns leave the last ones bare.
        names: what stands above each row ("" for nothing), over its full width.
        title: a line above all.
        gap: white between pictures, in pixels.

    Returns:
        the sheet with a margin of two gaps.
    """
    count = max(len(row) for row in rows)
    widths = [max((row[c].shape[1] for row in rows if c < len(row)), default=1) for c in range(count)]
    total = sum(widths) + gap * (count - 1)
    parts: list[list[Picture]] = [[line_of(title, total, SIZE + 2)]] if title else []
    if columns:
        heads = [line_of(columns[c] if c < len(columns) else "", widths[c]) for c in range(count)]
        parts.append([sheet([heads], gap=gap)])
    for index, row in enumerate(rows):
        if index < len(names) and names[index]:
            parts.append([line_of(names[index], total)])
        parts.append([_padded(row, widths, gap)])
    return np.pad(sheet(parts, gap=gap), ((2 * gap,) * 2, (2 * gap,) * 2, (0, 0)), constant_values=255)


def _padded(row: Sequence[Picture], widths: Sequence[int], gap: int) -> Picture:
    """Return one row whose columns have the given widths."""
    high = max(p.shape[0] for p in row)
    cells = []
    for index, width in enumerate(widths):
        cell = np.full((high, width, 3), 255, np.uint8)
        if index < len(row):
            own = row[index]
            cell[: own.shape[0], : own.shape[1]] = own
        cells.append(cell)
    return sheet([cells], gap=gap)
