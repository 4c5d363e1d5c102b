"""The HTML of maps and neighbours: positions as data, one sprite of thumbnails, names as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from imprint.viz.colours import category
from imprint.viz.embedding_map import EmbeddingMap
from imprint.viz.neighbours import Neighbourhood
from imprint.viz.page import payload, text
from imprint.viz.raster import Picture, data_uri, mosaic

TILE = 40


def sprite(images: Sequence[Picture]) -> tuple[str, int]:
    """Return the style and data that give every `.face` its thumbnail, and the number of columns."""
    columns = max(1, int(np.ceil(np.sqrt(len(images)))))
    made = mosaic(images, TILE, columns)
    style = f"<style>.face{{background-image:url({data_uri(made, 'jpeg', 82)})}}</style>"
    data = f'<script type="application/json" id="sprite">{payload({"columns": columns})}</script>'
    return style + data, columns


def neighbour_rows(
    hoods: Sequence[Neighbourhood],
    names: Sequence[str],
    labels: npt.NDArray[np.int64] | None,
    classes: Sequence[str],
    columns: int,
) -> str:
    """Return one panel per query: its thumbnail, then its neighbours with class and cosine."""

    def title(row: int) -> str:
        if labels is None:
            return ""
        return classes[labels[row]] if labels[row] < len(classes) else str(labels[row])

    out = []
    for hood in hoods:
        head = (
            f'<div class="cell query" title="{text(names[hood.query])}">{_face(hood.query, columns, 104)}'
            f'<div class="name">{text(title(hood.query) or names[hood.query])}</div></div>'
        )
        cells = []
        for row, cosine in zip(hood.rows, hood.similarity, strict=True):
            kind = "" if labels is None else (" same" if labels[row] == labels[hood.query] else " other")
            under = f"<div>{text(title(row))}</div>" if labels is not None else ""
            cells.append(
                f'<div class="cell{kind}" title="{text(names[row])}">{_face(row, columns, 84)}{under}{cosine:.3f}</div>'
            )
        words = text(f"{names[hood.query]} {title(hood.query)}")
        out.append(f'<div class="panel hood" data-words="{words}">{head}{"".join(cells)}</div>')
    return "".join(out)


def map_body(chart: EmbeddingMap, names: Sequence[str], about: str = "") -> str:
    """Return the map with its layouts, legend and data; `names` are those of the shown points, in order.

    Args:
        chart: the map.
        names: what stands under the thumbnail.
        about: said before the usual words, plain text.
    """
    groups = sorted(set(chart.groups_N.tolist()))
    sizes = np.bincount(chart.groups_N)
    data = {
        "layouts": {name: np.round(points, 4).tolist() for name, points in chart.layouts.items()},
        "groups": chart.groups_N.tolist(),
        "titles": {str(g): chart.names[g] for g in groups},
        "colours": {str(g): category(g) for g in groups},
        "names": list(names),
    }
    legend = "".join(
        f'<button type="button" data-group="{g}"><i style="background:{category(g)}"></i>'
        f"{text(chart.names[g])} ({sizes[g]})</button>"
        for g in groups
    )
    buttons = "".join(
        f'<button type="button" data-layout="{text(name)}" aria-pressed="{str(i == 0).lower()}">{text(name)}</button>'
        for i, name in enumerate(chart.layouts)
    )
    coloured = "k-means clusters (the source has no labels)" if chart.clustered else "class"
    words = (
        f"{about}{len(names):,} images, coloured by {coloured}. Point at one to see it; click a name to hide its group."
    )
    return (
        f'<p class="about">{text(words)}</p><div class="tools">{buttons}</div>'
        '<div class="panel columns"><svg class="map" viewBox="0 0 1000 1000" role="img" aria-label="map of embeddings">'
        f'</svg><div class="legend">{legend}</div></div>'
        f'<script type="application/json" id="map-data">{payload(data)}</script>'
    )


def _face(row: int, columns: int, side: int) -> str:
    x, y = row % columns * side, row // columns * side
    return f'<div class="face" style="background-size:{columns * side}px auto;background-position:-{x}px -{y}px"></div>'
