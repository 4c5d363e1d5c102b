"""Pictures of what encoders see, from their names: one function a picture, each writes a PNG file.

Every function takes one encoder or several, which are shown the same images side by side, each at its own size and
normalisation (a supervised against a self-supervised one, say), and a source of images or a list of image files.

Shapes: B images, N = gh * gw patches or places, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError, DataError
from imprint.data.sources import Source, spread
from imprint.evals.features import FeatureTable, extract
from imprint.evals.represent import resting
from imprint.viz.attention import attention_maps, head_cells, overlay
from imprint.viz.correspondence import likeness_picture, matches_picture, mutual_nearest, place_of
from imprint.viz.embedding_map import EmbeddingMap, draw_map, embedding_map
from imprint.viz.eyes import EncoderLike, Eye, SourceLike, Views, feature_map, open_eye, open_images, pick_rows, view
from imprint.viz.lettering import lettered
from imprint.viz.looks import (
    AttentionLook,
    CorrespondenceLook,
    ImagesLook,
    Look,
    MapLook,
    NeighboursLook,
    NormsLook,
    PcaLook,
    RolloutLook,
)
from imprint.viz.map_page import map_body, sprite
from imprint.viz.neighbours import labelled_sheet, nearest_rows, spread_queries
from imprint.viz.page import Section, page, text, write_page
from imprint.viz.patch_pca import component_pictures, patch_axes, patch_components
from imprint.viz.raster import Picture, resized, save_png, thumbnail
from imprint.viz.reconstructions import reconstructions
from imprint.viz.rollout import rollout_maps
from imprint.viz.run_folder import Absent, RunFolder
from imprint.viz.token_norms import norm_pictures, token_norms, tokens_before_norm

Encoders = EncoderLike | Sequence[EncoderLike]
PAIR_FROM = 64
"""Images among which the most similar two are looked for."""


def save_attention(encoders: Encoders, data: SourceLike, path: str | Path, look: AttentionLook | None = None) -> Path:
    """Write attention maps of one block: per image a row an encoder; columns: image, mean over heads, each head.

    With `keep`, masks of that share of the mass stand in for heat (DINO, arXiv 2104.14294, Fig. 4).

    Args:
        encoders: one or several (see `eyes.open_eye`).
        data: images (see `eyes.open_images`).
        path: PNG file to write.
        look: settings.

    Raises:
        ConfigError: for an encoder without attention, or a block or head that it lacks.
        DataError: for images that cannot be read.
    """
    look = look or AttentionLook()
    rows: list[list[Picture]] = []
    names: list[str] = []
    per_eye = []
    for eye, seen in _looks(encoders, data, look):
        with resting(eye.encoder, eye.device):
            per_eye.append((eye, seen, attention_maps(eye.encoder, seen.inputs_BCHW, look.layer)))
    for index in range(len(per_eye[0][1].pictures)):
        for eye, seen, maps in per_eye:
            base = resized(seen.pictures[index], look.side, look.side)
            rows.append([base, *head_cells(base, maps[index], heads=look.heads, keep=look.keep)])
            names.append(f"{eye.name}   {seen.names[index]}" if eye is per_eye[0][0] else eye.name)
    widest = max(min(look.heads, maps.shape[1]) for _, _, maps in per_eye)
    columns = ["image", "mean", *(f"head {i + 1}" for i in range(widest))]
    kind = "attention" if look.keep is None else f"{100 * look.keep:g} % of the attention"
    title = f"{kind} in block {look.layer}" if look.layer >= 0 else f"{kind}, block {look.layer} from the end"
    title = title.replace(", block -1 from the end", " in the last block")
    return save_png(lettered(rows, columns=columns, names=names, title=title), path)


def save_rollout(encoders: Encoders, data: SourceLike, path: str | Path, look: RolloutLook | None = None) -> Path:
    """Write attention rolled out through all blocks: the images, then a row of maps an encoder.

    Args:
        encoders: one or several.
        data: images.
        path: PNG file to write.
        look: settings.

    Raises:
        ConfigError: for an encoder without attention.
        DataError: for images that cannot be read.
    """
    look = look or RolloutLook()
    rows: list[list[Picture]] = []
    names: list[str] = []
    for eye, seen in _looks(encoders, data, look):
        bases = [resized(p, look.side, look.side) for p in seen.pictures]
        with resting(eye.encoder, eye.device):
            maps = rollout_maps(eye.encoder, seen.inputs_BCHW, look.residual)
        if not rows:
            rows.append(bases)
            names.append("images")
        rows.append([overlay(base, own) for base, own in zip(bases, maps, strict=True)])
        names.append(f"rollout of {eye.name}")
    return save_png(lettered(rows, names=names), path)


def save_pca(encoders: Encoders, data: SourceLike, path: str | Path, look: PcaLook | None = None) -> Path:
    """Write patch features as colours: the images, then per encoder the first component and the next three as RGB.

    The components are those of the patches of `fit` images together, so colours mean the same in all of them.

    Args:
        encoders: one or several; CNNs and Swins show the map of a stage.
        data: images.
        path: PNG file to write.
        look: settings.

    Raises:
        ConfigError: for a layer that an encoder lacks.
        DataError: for images that cannot be read.
    """
    look = look or PcaLook()
    rows: list[list[Picture]] = []
    names: list[str] = []
    for eye, source, chosen in _open(encoders, data, look):
        seen = view(eye, source, chosen, look.workers)
        patches, grid = feature_map(eye, seen.inputs_BCHW, look.layer)
        tables = [patches.numpy()]
        more = np.setdiff1d(spread(len(source), look.fit), seen.rows)[: max(0, look.fit - len(seen.rows))]
        for start in range(0, len(more), 32):
            others = view(eye, source, more[start : start + 32], look.workers)
            tables.append(feature_map(eye, others.inputs_BCHW, look.layer)[0].numpy())
        axes = patch_axes(tables, grid=grid)
        pairs = component_pictures(patch_components(tables[0], axes=axes), grid)
        if not rows:
            rows.append([resized(p, look.side, look.side) for p in seen.pictures])
            names.append("images")
        for index, what in enumerate(("first component", "next three as red, green, blue")):
            rows.append([resized(pair[index], look.side, look.side, smooth=False) for pair in pairs])
            names.append(f"{what}, {eye.name}")
    return save_png(lettered(rows, names=names), path)


def save_correspondence(
    encoders: Encoders, data: SourceLike, path: str | Path, look: CorrespondenceLook | None = None
) -> Path:
    """Write the matches of two images: per encoder the mutual nearest patches as lines, and the likeness to one point.

    Args:
        encoders: one or several; CNNs and Swins are matched by the map of a stage.
        data: a source of which two images are taken, or two image files.
        path: PNG file to write.
        look: settings.

    Raises:
        ConfigError: for other than two rows, or a point outside the image.
        DataError: for fewer than two images.
    """
    look = look or CorrespondenceLook()
    if len(look.rows) not in (0, 2):
        raise ConfigError(f"a correspondence is between two images; give two rows, not {len(look.rows)}.")
    rows: list[list[Picture]] = []
    names: list[str] = []
    pair = look.rows
    for eye in _eyes(encoders, data, look):
        source = open_images(data, eye.encoder)
        pair = pair or _most_alike(eye, source, look)
        seen = view(eye, source, pair, look.workers)
        if len(seen.pictures) < 2:
            raise DataError(f"two images are needed and '{source.spec}' gives {len(seen.pictures)} readable.")
        features, grid = feature_map(eye, seen.inputs_BCHW, look.layer)
        place = place_of(look.point, grid)
        pairs, cosine = mutual_nearest(features[0], features[1])
        both = (seen.pictures[0], seen.pictures[1])
        lines = matches_picture(both, pairs, grid, matches=look.matches, side=look.side)
        heat = likeness_picture(both, (features[0], features[1]), place, grid, side=look.side)
        rows += [[lines], [heat]]
        shown = min(look.matches, len(pairs))
        about = f"{shown} of {len(pairs)} mutual neighbours" + (f", cosine {cosine[0]:.2f} to " if shown else "")
        names.append(f"{eye.name}: {about}{cosine[shown - 1]:.2f}" if shown else f"{eye.name}: {about}")
        names.append("likeness to the ringed place of the left image; the ring on the right is the most similar place")
    return save_png(lettered(rows, names=names), path)


def save_norms(encoders: Encoders, data: SourceLike, path: str | Path, look: NormsLook | None = None) -> Path:
    """Write the norms of patch tokens before the final norm: the images, then a row an encoder, on one scale a row.

    Args:
        encoders: one or several; a CNN or Swin shows the norms of its last map.
        data: images.
        path: PNG file to write.
        look: settings.

    Raises:
        DataError: for images that cannot be read.
    """
    look = look or NormsLook()
    rows: list[list[Picture]] = []
    names: list[str] = []
    for eye, seen in _looks(encoders, data, look):
        with resting(eye.encoder, eye.device), torch.no_grad():
            tokens = tokens_before_norm(eye.encoder, seen.inputs_BCHW).float().cpu()
            grid = eye.encoder.encode(seen.inputs_BCHW[:1]).grid
        found = token_norms(tokens.numpy())
        if not rows:
            rows.append([resized(p, look.side, look.side) for p in seen.pictures])
            names.append("images")
        rows.append([resized(p, look.side, look.side, smooth=False) for p in norm_pictures(found, grid)])
        told = f"median {found.median:.3g}, largest {found.largest:.3g}, {100 * found.outlier_share:.2f} % stand out"
        names.append(f"norms of {eye.name}: {told}")
    return save_png(lettered(rows, names=names), path)


def save_map(encoders: Encoders, data: SourceLike, path: str | Path, look: MapLook | None = None) -> Path:
    """Write the embedding in a plane, one picture an encoder and layout; a path in `.html` gives a page to point at.

    Any number of images: see `embedding_map` for what is sampled. A page takes one encoder and shows the sample.

    Args:
        encoders: one or several.
        data: images, coloured by class where there are labels.
        path: PNG or HTML file to write.
        look: settings.

    Raises:
        ConfigError: for an unknown layout, or a page of several encoders.
        MissingExtra: for UMAP without umap-learn.
    """
    look = look or MapLook()
    as_page = Path(path).suffix.lower() in (".html", ".htm")
    eyes = _eyes(encoders, data, look)
    if as_page and len(eyes) > 1:
        raise ConfigError("a page with thumbnails shows one encoder; give a .png file for several.")
    cells: list[Picture] = []
    names: list[str] = []
    for eye in eyes:
        source = open_images(data, eye.encoder)
        table = _table(eye, source, look)
        chart = embedding_map(
            np.asarray(table.features_ND) if len(table) <= look.sample else table.features_ND,
            table.labels_N,
            table.classes,
            seed=look.seed,
            layouts=look.layouts,
            sample=look.sample,
            rest="drop" if as_page else look.rest,
        )
        if as_page:
            return _map_page(eye, source, table, chart, Path(path), look)
        for layout in chart.layouts:
            last = eye is eyes[-1] and layout == list(chart.layouts)[-1]
            cells.append(draw_map(chart, layout, look.side, legend=last))
            names.append(f"{layout} of {eye.name}, {len(chart.rows_M):,} of {len(table):,} images")
    return save_png(lettered([cells], columns=names), path)


def save_neighbours(encoders: Encoders, data: SourceLike, path: str | Path, look: NeighboursLook | None = None) -> Path:
    """Write nearest neighbours by cosine: per encoder a row a query, the query first.

    Args:
        encoders: one or several, asked for the same queries.
        data: images.
        path: PNG file to write.
        look: settings.

    Raises:
        DataError: for fewer than two images.
    """
    look = look or NeighboursLook()
    blocks: list[Picture] = []
    names: list[str] = []
    queries: list[int] = []  # positions in the source, the same for every encoder
    for eye in _eyes(encoders, data, look):
        source = open_images(data, eye.encoder)
        table = _table(eye, source, look)
        if len(table) < 2:
            raise DataError(f"neighbours need two images or more; '{source.spec}' has {len(table)}.")
        if not queries:
            drawn = spread_queries(table.labels_N, look.images, len(table))
            queries = list(pick_rows(source, 0, look.rows)) if look.rows else [int(table.index_N[i]) for i in drawn]
        asked = np.flatnonzero(np.isin(table.index_N, queries))
        order = {int(table.index_N[i]): int(i) for i in asked}
        hoods = nearest_rows(table.features_ND, [order[q] for q in queries if q in order], look.neighbours)
        wanted = sorted({row for hood in hoods for row in (hood.query, *hood.rows)})
        seen = view(eye, source, table.index_N[wanted], look.workers)
        images = dict(zip(wanted, seen.pictures, strict=True))
        blocks.append(labelled_sheet(hoods, images, table.labels_N, look.side))
        names.append(f"{eye.name}: query, then its {look.neighbours} nearest of {len(table):,}")
    return save_png(lettered([[block] for block in blocks], names=names), path)


def save_reconstructions(run: str | Path, path: str | Path) -> Path:
    """Write what a masked method's run made of what it did not see: image, visible part, reconstruction.

    Args:
        run: folder of the run.
        path: PNG file to write.

    Raises:
        ConfigError: when the folder is no run, or its method reconstructs no pictures.
    """
    found = RunFolder.open(run).samples("reconstruct")
    pictures = {} if isinstance(found, Absent) else {n: v for n, v in found.items() if v.ndim == 4 and v.numel()}
    if not pictures:
        reason = found.reason if isinstance(found, Absent) else "samples/reconstruct.safetensors holds no pictures."
        raise ConfigError(f"{reason} Masked methods that predict pixels (mae, simmim, ...) leave reconstructions.")
    return save_png(reconstructions(pictures), path)


def _listed(encoders: Encoders) -> list[EncoderLike]:
    if isinstance(encoders, (str, Path, Encoder)) or not isinstance(encoders, Sequence):
        return [encoders]
    if not encoders:
        raise ConfigError("no encoder is given; name one or several.")
    return list(encoders)


def _eyes(encoders: Encoders, data: SourceLike, look: Look) -> list[Eye]:
    channels = open_images(data).channels
    return [
        open_eye(e, image_size=look.image_size, device=look.device, seed=look.seed, channels=channels)
        for e in _listed(encoders)
    ]


def _open(encoders: Encoders, data: SourceLike, look: ImagesLook) -> list[tuple[Eye, Source, list[int]]]:
    out = []
    for eye in _eyes(encoders, data, look):
        source = open_images(data, eye.encoder)
        out.append((eye, source, pick_rows(source, look.images, look.rows).tolist()))
    return out


def _looks(encoders: Encoders, data: SourceLike, look: ImagesLook) -> list[tuple[Eye, Views]]:
    return [(eye, view(eye, source, rows, look.workers)) for eye, source, rows in _open(encoders, data, look)]


def _table(eye: Eye, source: Source, look: Look) -> FeatureTable:
    return extract(
        eye.encoder,
        source,
        image_size=eye.image_size,
        normalise=eye.normalise,
        workers=look.workers,
        device=look.device,
        batch_size=256 if eye.image_size <= 64 else 64,
    )


def _most_alike(eye: Eye, source: Source, look: Look) -> tuple[int, ...]:
    """Return the two most similar of up to 64 images spread over the source, equal ones apart."""
    if len(source) < 2:
        raise DataError(f"two images are needed and '{source.spec}' has {len(source)}.")
    part = source.subset(spread(len(source), PAIR_FROM))
    table = _table(eye, part, look)
    hoods = nearest_rows(table.features_ND, range(len(table)), 1)
    distinct = [h for h in hoods if h.similarity[0] < 0.9999] or hoods
    best = max(distinct, key=lambda h: h.similarity[0])
    rows = spread(len(source), PAIR_FROM)
    return tuple(int(rows[table.index_N[row]]) for row in sorted((best.query, best.rows[0])))


def _map_page(eye: Eye, source: Source, table: FeatureTable, chart: EmbeddingMap, path: Path, look: MapLook) -> Path:
    """Write a page with the shown points' thumbnails in one sprite."""
    images: list[Picture] = []
    rows = table.index_N[chart.rows_M]
    for start in range(0, len(rows), 256):
        images += [thumbnail(p, 40) for p in view(eye, source, rows[start : start + 256], look.workers).pictures]
    names = [table.names[int(row)] for row in chart.rows_M]
    markup, _ = sprite(images)
    about = "" if len(rows) == len(table) else f"An even sample of {len(table):,} images. "
    body = map_body(chart, names, about) + markup
    document = page(
        title=f"Map of {eye.name}",
        subtitle=f"{source.spec} as {eye.name} sees it",
        lead="",
        sections=[Section("map", "Map", body)],
        footer=f"Layouts: {text(', '.join(chart.layouts))}. Written by Imprint.",
    )
    return write_page(document, path)
