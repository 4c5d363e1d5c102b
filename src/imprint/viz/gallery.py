"""The sections of a report that look at images again: neighbours, map, attention, patch features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, ImprintError
from imprint.data.loader import sweep
from imprint.data.sources import Source, spread
from imprint.evals.features import FeatureTable, extract
from imprint.evals.represent import evaluation_view, pick_device, resting
from imprint.viz import charts
from imprint.viz.attention import Maps, attention_maps, overlay
from imprint.viz.correspondence import likeness_picture, matches_picture, mutual_nearest, place_of
from imprint.viz.embedding_map import embedding_map
from imprint.viz.eyes import Eye, feature_map
from imprint.viz.lettering import lettered
from imprint.viz.map_page import TILE, map_body, neighbour_rows, sprite
from imprint.viz.neighbours import nearest_rows, spread_queries
from imprint.viz.page import Section, figure, filter_box, text
from imprint.viz.patch_pca import pca_sheet
from imprint.viz.raster import Picture, picture, resized, sheet, thumbnail
from imprint.viz.rollout import rollout_maps
from imprint.viz.run_folder import Absent, RunFolder
from imprint.viz.token_norms import TokenNorms, histogram, norms_sheet, token_norms, tokens_before_norm

SIDE = 112
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
    shared, columns = sprite(found.images)
    hoods = nearest_rows(np.asarray(table.features_ND), spread_queries(labels, QUERIES, len(table)), NEIGHBOURS)
    neighbours = neighbour_rows(hoods, names, labels, classes, columns)
    about = _about(run, found) + (
        " The leftmost image is the query; the others are the most similar by cosine."
        + (" Green: same class; red: another." if labels is not None else "")
    )
    tools = filter_box(".hood", "Filter by file or class name")
    chart = embedding_map(np.asarray(table.features_ND), labels, classes)
    return [
        Section(*titles[0], f'<p class="about">{text(about)}</p>{tools}<div class="hoods">{neighbours}</div>{shared}'),
        Section(*titles[1], map_body(chart, names)),
    ]


def token_sections(run: RunFolder, found: Looked | Absent, device: str) -> list[Section]:
    """Return attention and rollout, patch components, correspondence and token norms; without tokens the middle two."""
    titles = (
        ("attention", "Attention"),
        ("patches", "Patch features"),
        ("correspondence", "Correspondence"),
        ("norms", "Token norms"),
    )
    if isinstance(found, Absent):
        return [Section(key, title, reason=found.reason) for key, title in titles]
    encoder = run.encoder
    assert isinstance(encoder, Encoder)  # found could not be there without it
    place = pick_device(device, encoder)
    eye = Eye(encoder.name, encoder, run.normalise, run.image_size, place)
    images = [found.images[i] for i in found.chosen]
    inputs = found.normalised.to(place)
    attention = Section(*titles[0], reason=f"{encoder.name} has no patch tokens; attention and norms are for ViTs.")
    norms = Section(*titles[3], reason=attention.reason)
    if encoder.has_tokens:
        with resting(encoder, place), torch.no_grad():
            before = tokens_before_norm(encoder, inputs).float().cpu().numpy()
            features = encoder.encode(inputs[:1])
            norms = Section(*titles[3], _norms_body(images, token_norms(before), features.grid))
            try:
                maps, rolled = attention_maps(encoder, inputs), rollout_maps(encoder, inputs)
                body = _attention_body(images, maps, rolled, features.cls_BD is not None)
                attention = Section(*titles[0], body)
            except ConfigError as error:
                attention = Section(*titles[0], reason=str(error))
    patches, grid = feature_map(eye, inputs)
    if min(grid) < 2:
        reason = f"{encoder.name} sees its images of {run.image_size} px as {grid[0]} x {grid[1]} places."
        return [attention, *(Section(*title, reason=reason) for title in titles[1:3]), norms]
    about = (
        "From above: the image, the first principal component of all patches together (foreground against ground), and "
        "the next three as red, green and blue: patches with like features have like colours, across images."
    )
    colours = figure(pca_sheet(images, patches.numpy(), grid), "patch components", kind="png")
    matched = Section(*titles[2], _correspondence_body(found, images, patches, grid))
    return [attention, Section(*titles[1], f'<p class="about">{text(about)}</p>{colours}'), matched, norms]


def _small(image: Picture, full: bool) -> Picture:
    """Return a thumbnail of an image that is only shown in the sprite (2,000 full views would fill the memory)."""
    return image if full else thumbnail(image, TILE)


def _attention_body(images: list[Picture], maps: Maps, rolled: Maps, has_cls: bool) -> str:
    query = "the class token" if has_cls else "all patches on average"
    heads = min(6, maps.shape[1])
    about = (
        f"Attention of {query} to the patches in the last block: the mean over {maps.shape[1]} heads and the first "
        f"{heads} heads; and rolled out through all blocks. Each map is scaled to its own range."
    )
    bases = [resized(image, SIDE, SIDE) for image in images]
    shown = [rolled, maps.mean(1), *(maps[:, head] for head in range(heads))]
    rows = [bases, *([overlay(base, own) for base, own in zip(bases, row, strict=True)] for row in shown)]
    names = ["image", "rollout", "last block, mean over heads", *(f"head {i + 1}" for i in range(heads))]
    return f'<p class="about">{text(about)}</p>{figure(lettered(rows, names=names), "attention maps")}'


def _correspondence_body(found: Looked, images: list[Picture], patches_BND: Tensor, grid: tuple[int, int]) -> str:
    """Match the most similar two of the images looked at (two equal ones only when there is nothing else)."""
    hoods = nearest_rows(np.asarray(found.table.features_ND)[found.chosen], range(len(images)), 1)
    if not hoods:
        return ""
    best = max(hoods, key=lambda h: (h.similarity[0] < 0.9999, h.similarity[0]))
    one, two = sorted((best.query, best.rows[0]))
    both, features = (images[one], images[two]), (patches_BND[one], patches_BND[two])
    pairs, _ = mutual_nearest(*features)
    lines = matches_picture(both, pairs, grid, side=2 * SIDE)
    heat = likeness_picture(both, features, place_of((0.5, 0.5), grid), grid, side=2 * SIDE)
    about = (
        f"Of the images above, the most similar two. Above: the {min(40, len(pairs))} most similar of {len(pairs)} "
        "pairs of places that are each other's nearest. Below: likeness to the ringed place in the left image; the "
        "ring in the right one is the most similar place."
    )
    return f'<p class="about">{text(about)}</p>{figure(sheet([[lines], [heat]], gap=12), "correspondence")}'


def _norms_body(images: list[Picture], norms: TokenNorms, grid: tuple[int, int]) -> str:
    told = (
        f"Before the final norm layer: median {norms.median:.3g}, largest {norms.largest:.3g}; "
        f"{100 * norms.outlier_share:.2f} % of the patches stand out. Single patches of very high norm in the "
        "background call for register tokens (--encoder.registers 4)."
    )
    chart = f'<div class="panel"><h3>Distribution</h3>{charts.svg(histogram(norms))}</div>'
    pictures = figure(norms_sheet(images, norms, grid), "token norms", kind="png")
    return f'<p class="about">{text(told)}</p>{pictures}<div class="charts">{chart}</div>'


def _about(run: RunFolder, found: Looked) -> str:
    total = 0 if isinstance(run.source, Absent) else len(run.source)
    spec = "" if isinstance(run.source, Absent) else run.source.spec
    many = f"{len(found.table):,} of {total:,} images" if len(found.table) < total else f"All {total:,} images"
    return f"{many} of {spec}, encoded by the trained encoder."
