"""The sections of a report that look at images again: neighbours, map, attention, patch features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, ImprintError
from imprint.data.loader import sweep
from imprint.data.sources import Source, spread
from imprint.evals.features import FeatureTable, extract
from imprint.evals.represent import evaluation_view, pick_device, resting
from imprint.viz import charts
from imprint.viz.attention import attention_maps, attention_sheet
from imprint.viz.colours import category
from imprint.viz.embedding_map import EmbeddingMap, embedding_map
from imprint.viz.neighbours import Neighbourhood, nearest_rows, spread_queries
from imprint.viz.page import Section, figure, filter_box, payload, text
from imprint.viz.patch_pca import pca_sheet
from imprint.viz.raster import Picture, data_uri, mosaic, picture, thumbnail
from imprint.viz.run_folder import Absent, RunFolder
from imprint.viz.token_norms import histogram, norms_sheet, token_norms, tokens_before_norm

TILE = 40
LOOKED_AT = 8
QUERIES, NEIGHBOURS = 16, 10


@dataclass(frozen=True)
class Looked:
    """A part of a source as the encoder sees it.

    Attributes:
        table: features.
        images: evaluation views as pictures, same rows.
        normalised: the first few of them as the encoder's input (B, C, H, W), spread over the source.
        chosen: rows of those few.
    """

    table: FeatureTable
    images: list[Picture]
    normalised: Tensor
    chosen: list[int]


def look(run: RunFolder, limit: int, workers: int | None, device: str) -> Looked | Absent:
    """Encode at most `limit` images of the run's source, spread evenly over it."""
    if isinstance(run.encoder, Absent):
        return run.encoder
    if isinstance(run.source, Absent):
        return run.source
    encoder, source = run.encoder, run.source
    size = run.image_size
    try:
        part: Source = source if len(source) <= limit else source.subset(spread(len(source), limit))
        table = extract(encoder, part, image_size=size, normalise=run.normalise, workers=workers, device=device)
        images: list[Picture] = []
        seen = set(table.index_N.tolist())
        chosen = [int(i) for i in spread(len(table), LOOKED_AT)]
        kept: list[Tensor] = []
        view = evaluation_view(size)
        for batch in sweep(part, view, batch_size=64, workers=workers):
            crops = batch.views[view.name][0]
            for row, index in enumerate(batch.index_B.tolist()):
                if index not in seen:
                    continue
                if len(images) in chosen:
                    kept.append(crops[row].clone())
                images.append(_small(picture(crops[row].numpy(), channels_first=True), len(images) in chosen))
        if len(images) != len(table):
            return Absent("The run's data source changed while the report was made.")
        return Looked(table, images, run.normalise(torch.stack(kept)), chosen)
    except (ImprintError, OSError, RuntimeError) as error:
        return Absent(f"The images cannot be encoded again: {error}")


def map_and_neighbours(run: RunFolder, found: Looked | Absent) -> list[Section]:
    """Return the nearest neighbours and the map, which share one sprite of thumbnails."""
    titles = (("neighbours", "Nearest neighbours"), ("map", "Map"))
    if isinstance(found, Absent):
        return [Section(key, title, reason=found.reason) for key, title in titles]
    table = found.table
    if len(table) < 3:
        return [Section(key, title, reason="There are fewer than three images.") for key, title in titles]
    names = [str(name) for name in table.names]
    labels, classes = table.labels_N, table.classes
    columns = max(1, int(np.ceil(np.sqrt(len(table)))))
    sprite = mosaic(found.images, TILE, columns)
    style = f"<style>.face{{background-image:url({data_uri(sprite, 'jpeg', 82)})}}</style>"
    shared = f'{style}<script type="application/json" id="sprite">{payload({"columns": columns})}</script>'
    hoods = nearest_rows(np.asarray(table.features_ND), spread_queries(labels, QUERIES, len(table)), NEIGHBOURS)
    neighbours = _neighbour_rows(hoods, names, labels, classes, columns)
    about = _about(run, found) + (
        " The leftmost image is the query; the others are the most similar by cosine."
        + (" Green: same class; red: another." if labels is not None else "")
    )
    tools = filter_box(".hood", "Filter by file or class name")
    chart = embedding_map(np.asarray(table.features_ND), labels, classes)
    return [
        Section(*titles[0], f'<p class="about">{text(about)}</p>{tools}<div class="hoods">{neighbours}</div>{shared}'),
        Section(*titles[1], _map_body(chart, names, len(table))),
    ]


def token_sections(run: RunFolder, found: Looked | Absent, device: str) -> list[Section]:
    """Return attention, patch components and token norms of a ViT."""
    titles = (("attention", "Attention"), ("patches", "Patch features"), ("norms", "Token norms"))
    if isinstance(found, Absent):
        return [Section(key, title, reason=found.reason) for key, title in titles]
    encoder = run.encoder
    assert isinstance(encoder, Encoder)  # found could not be there without it
    if not encoder.has_tokens:
        reason = f"{encoder.name} has no patch tokens; these pictures are for ViTs."
        return [Section(key, title, reason=reason) for key, title in titles]
    images = [found.images[i] for i in found.chosen]
    place = pick_device(device, encoder)
    inputs = found.normalised.to(place)
    with resting(encoder, place), torch.no_grad():
        features = encoder.encode(inputs)
        patches, grid = features.patches_BND.float().cpu().numpy(), features.grid
        before = tokens_before_norm(encoder, inputs).float().cpu().numpy()
        try:
            maps = attention_maps(encoder, inputs)
            attention = Section(*titles[0], _attention_body(images, maps, features.cls_BD is not None))
        except ConfigError as error:
            attention = Section(*titles[0], reason=str(error))
    about = (
        "From above: the image, the first principal component of all patches together (foreground against ground), and "
        "the next three as red, "
        "green and blue: patches with like features have like colours, across images."
    )
    body = (
        f'<p class="about">{text(about)}</p>{figure(pca_sheet(images, patches, grid), "patch components", kind="png")}'
    )
    norms = token_norms(before)
    told = (
        f"Before the final norm layer: median {norms.median:.3g}, largest {norms.largest:.3g}; "
        f"{100 * norms.outlier_share:.2f} % of the "
        "patches stand out. Single patches of very high norm in the background call for register tokens "
        "(--encoder.registers 4)."
    )
    chart = f'<div class="panel"><h3>Distribution</h3>{charts.svg(histogram(norms))}</div>'
    pictures = figure(norms_sheet(images, norms, grid), "token norms", kind="png")
    shown = f'<p class="about">{text(told)}</p>{pictures}<div class="charts">{chart}</div>'
    return [attention, Section(*titles[1], body), Section(*titles[2], shown)]


def _small(image: Picture, full: bool) -> Picture:
    """Return a thumbnail of an image that is only shown in the sprite (2,000 full views would fill the memory)."""
    return image if full else thumbnail(image, TILE)


def _attention_body(images: list[Picture], maps: npt.NDArray[np.float32], has_cls: bool) -> str:
    query = "the class token" if has_cls else "all patches on average"
    heads = min(6, maps.shape[1])
    about = (
        f"Attention of {query} to the patches in the last block. From above: the image, the mean over "
        f"{maps.shape[1]} heads, the first {heads} heads. Each map is scaled to its own range."
    )
    return f'<p class="about">{text(about)}</p>{figure(attention_sheet(images, maps), "attention maps")}'


def _about(run: RunFolder, found: Looked) -> str:
    total = 0 if isinstance(run.source, Absent) else len(run.source)
    spec = "" if isinstance(run.source, Absent) else run.source.spec
    many = f"{len(found.table):,} of {total:,} images" if len(found.table) < total else f"All {total:,} images"
    return f"{many} of {spec}, encoded by the trained encoder."


def _face(row: int, columns: int, side: int) -> str:
    x, y = row % columns * side, row // columns * side
    return f'<div class="face" style="background-size:{columns * side}px auto;background-position:-{x}px -{y}px"></div>'


def _neighbour_rows(
    hoods: Sequence[Neighbourhood],
    names: Sequence[str],
    labels: npt.NDArray[np.int64] | None,
    classes: Sequence[str],
    columns: int,
) -> str:
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


def _map_body(chart: EmbeddingMap, names: Sequence[str], count: int) -> str:
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
    about = f"{count:,} images, coloured by {coloured}. Point at one to see it; click a name to hide its group."
    return (
        f'<p class="about">{text(about)}</p><div class="tools">{buttons}</div>'
        '<div class="panel columns"><svg class="map" viewBox="0 0 1000 1000" role="img" aria-label="map of embeddings">'
        f'</svg><div class="legend">{legend}</div></div>'
        f'<script type="application/json" id="map-data">{payload(data)}</script>'
    )
