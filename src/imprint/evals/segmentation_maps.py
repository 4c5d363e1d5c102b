"""Feature maps of tiles: encoded in one pass, kept by content in memory-mapped files, read back per tile.

Shapes: B tiles of one size, D_i width of map i, h_i x w_i its grid, T all cells of all tiles.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.data.mask_folders import MaskedImages
from imprint.evals import feature_cache
from imprint.evals.segmentation_frames import Frames, Pixels, Tile, ahead, tile_image

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder

MEMORY_GB = 2.0
"""What maps may take without the cache on disk; above it they are encoded again in every epoch."""

_logger = logging.getLogger(__name__)


def encode_maps(encoder: Encoder, images_BCHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Return the maps of the given blocks or stages in the order asked for, or the encoder's own (`encode_maps`)."""
    if not layers:
        return encoder.encode_maps(images_BCHW)
    outputs = encoder.encode_layers(images_BCHW, layers)
    return [f.patches_BND.transpose(1, 2).unflatten(2, f.grid) for f in outputs]


@dataclass(frozen=True)
class Sight:
    """A frozen encoder and how it sees.

    Attributes:
        encoder: at rest on `device`.
        frames: sizes.
        layers: see `encode_maps`.
        normalise: of pixels.
        device: where.
        dtype: of autocast.
        workers: loader threads.
        budget: pixels per forward.
    """

    encoder: Encoder
    frames: Frames
    layers: tuple[int, ...]
    normalise: Normalise
    device: torch.device
    dtype: torch.dtype
    workers: int | None
    budget: int

    def tensor(self, images: Sequence[Pixels]) -> Tensor:
        """Return normalised images (B, C, H, W) on the device; an encoder of one channel gets their luma."""
        stacked = torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
        if self.encoder.channels == 1:
            luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
            stacked = (stacked * luma).sum(1, keepdim=True).round().to(torch.uint8)
        return self.normalise(stacked.to(self.device))

    @torch.no_grad()
    def maps(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Return float32 maps of images of one size.

        Raises:
            ConfigError: when the encoder refuses their size; the message names the option that helps.
        """
        try:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                found = encode_maps(self.encoder, self.tensor(images), self.layers)
        except ConfigError as error:
            side = self.encoder.image_size
            hint = "" if self.frames.window else f" Or let it see windows of the images: --window {side}."
            raise ConfigError(f"{error}{hint}") from error
        return [x.float() for x in found]

    def stream(self, source: MaskedImages, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, list[Tensor]]]:
        """Yield (tile, its maps (D_i, h_i, w_i)) in order; neighbours of one size share a forward."""
        loaded = ahead(lambda tile: (tile, tile_image(source, tile)), tiles, self.workers)
        for shape, group in itertools.groupby(loaded, key=lambda pair: pair[0].shape):
            count = max(1, self.budget // (shape[0] * shape[1]))
            while batch := list(itertools.islice(group, count)):
                maps = self.maps([image for _, image in batch])
                for b, (tile, _) in enumerate(batch):
                    yield tile, [x[b] for x in maps]


@dataclass(frozen=True)
class MapTable:
    """Maps of many tiles as rows of cells.

    Attributes:
        cells: per map (T_i, D_i) float32, memory-mapped when they came from the cache.
        grids: int64 (tiles, maps, 2): h and w of each.
        starts: int64 (tiles + 1, maps): first row of each tile.
    """

    cells: tuple[npt.NDArray[np.float32], ...]
    grids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def maps(self, rows: Sequence[int], device: torch.device) -> list[Tensor]:
        """Return maps (B, D_i, h_i, w_i) of tiles of one size."""
        found = []
        for m, cells in enumerate(self.cells):
            height, width = self.grids[rows[0], m]
            parts = [np.asarray(cells[self.starts[r, m] : self.starts[r + 1, m]]) for r in rows]
            stacked = torch.from_numpy(np.stack(parts)).to(device)
            found.append(stacked.view(len(rows), int(height), int(width), -1).permute(0, 3, 1, 2))
        return found


def map_table(sight: Sight, source: MaskedImages, tiles: Sequence[Tile], cache: bool) -> MapTable | None:
    """Return the maps of all tiles, from the cache where they are there; None when they would take too much room."""
    probe = sight.maps([tile_image(source, tiles[0])])
    per_pixel = sum(x.numel() for x in probe) / (tiles[0].shape[0] * tiles[0].shape[1])
    size_gb = 4e-9 * per_pixel * sum(t.shape[0] * t.shape[1] for t in tiles)
    disk_gb = 0.5 * float(os.environ.get("IMPRINT_CACHE_GB", feature_cache.LIMIT_GB))
    if size_gb > (disk_gb if cache else MEMORY_GB):
        _logger.warning(
            "the maps of %d images would take %.1f GB; they are encoded anew in every epoch. Fewer --layers, a smaller "
            "--image-size or a larger IMPRINT_CACHE_GB lets them be kept.", len(source), size_gb,
        )  # fmt: skip
        return None
    widths = [int(x.shape[1]) for x in probe]
    if not cache:
        return _fill(sight, source, tiles, widths, None)
    key = feature_cache.key_of(
        {
            "kind": "maps",
            "weights": feature_cache.weights_digest(sight.encoder),
            "encoder": [type(sight.encoder).__name__, sight.encoder.config],
            "source": [source.fingerprint, len(source)],
            "tiles": [[t.image, t.frame, t.box] for t in tiles],
            "normalise": repr(sight.normalise),
            "precision": str(sight.dtype),
            "layers": list(sight.layers),
        }
    )
    found = _load(key, len(widths))
    if found is None:
        with feature_cache.entry(key) as folder:
            table = _fill(sight, source, tiles, widths, folder)
            np.save(folder / "grids.npy", table.grids)
            del table
        found = _load(key, len(widths))
        if found is None:
            where = feature_cache.cache_folder()
            raise DataError(f"the cache folder {where} loses what is written to it; use --no-cache.")
    return found


def _starts(grids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros((1, grids.shape[1]), np.int64), grids.prod(2).cumsum(0)])


def _load(key: str, maps: int) -> MapTable | None:
    folder = feature_cache.cache_folder() / key
    try:
        grids = np.load(folder / "grids.npy", allow_pickle=False)
        cells: list[Any] = [np.load(folder / f"map{m}.npy", mmap_mode="c", allow_pickle=False) for m in range(maps)]
        starts = _starts(grids)
        sound = grids.shape[1:] == (maps, 2) and all(len(c) == starts[-1, m] for m, c in enumerate(cells))
    except (OSError, ValueError, EOFError, IndexError):
        sound = False
    if not sound:
        shutil.rmtree(folder, ignore_errors=True)  # a damaged entry would stand in the way of the next one
        return None
    os.utime(folder)
    return MapTable(tuple(cells), grids, starts)


def _fill(
    sight: Sight, source: MaskedImages, tiles: Sequence[Tile], widths: Sequence[int], folder: Path | None
) -> MapTable:
    """Encode all tiles into arrays, in memory or in files that grow tile by tile."""
    grids = np.zeros((len(tiles), len(widths), 2), np.int64)
    parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in widths]
    files = [open(folder / f"map{m}.raw", "wb") for m in range(len(widths))] if folder is not None else []
    try:
        for row, (_, maps) in enumerate(sight.stream(source, tiles)):
            for m, x in enumerate(maps):
                grids[row, m] = x.shape[1:]
                cells = x.permute(1, 2, 0).reshape(-1, widths[m]).cpu().numpy()
                if files:
                    files[m].write(np.ascontiguousarray(cells).data)
                else:
                    parts[m].append(cells)
    finally:
        for file in files:
            file.close()
    starts = _starts(grids)
    if folder is None:
        return MapTable(tuple(np.concatenate(p) for p in parts), grids, starts)
    for m, width in enumerate(widths):
        rows = int(starts[-1, m])
        raw = np.memmap(folder / f"map{m}.raw", np.float32, "r", shape=(rows, width))
        kept = np.lib.format.open_memmap(folder / f"map{m}.npy", mode="w+", dtype=np.float32, shape=(rows, width))
        kept[:] = raw
        kept.flush()
        del raw, kept
        (folder / f"map{m}.raw").unlink()
    return MapTable((), grids, starts)
