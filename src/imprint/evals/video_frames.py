"""From the frames of a video to maps of patch features, and from masks to labels of patches.

Shapes: B frames of a chunk, H x W pixels, h x w patches, D width, C label channels (background, then the objects).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.backbones.encoder import Encoder, Features
from imprint.core.errors import ConfigError
from imprint.data.batch import Normalise
from imprint.data.davis import Video
from imprint.evals.pixels import PixelEncoder
from imprint.evals.protocol import ProtocolConfig
from imprint.evals.represent import pick_device, pick_precision
from imprint.viz.raster import resized

READERS = 2


@dataclass(frozen=True, kw_only=True)
class FrameConfig(ProtocolConfig):
    """How videos are read and what is written of them.

    Attributes:
        image_size: shorter side of the frames in pixels; both sides are rounded to whole patches.
        batch_size: frames per forward.
        layers: blocks of a ViT whose patches are concatenated (negatives count back); empty takes the last, normed.
        stage: which map of a hierarchical encoder is taken, 0 the finest and -1 the coarsest.
        pixel_patch: side of the patches that stand for features when the encoder is `pixels`.
        sequences: names of sequences or of lists of them (`2017/val`, or a text file); empty takes all.
        shown: frames of each sequence in the figures.
        masks_out: folder for the predicted masks, palette PNGs in the layout that the DAVIS toolkit scores.
        films_out: folder for one overlay film (mp4) per sequence; needs `imprint[video]`.
    """

    image_size: int | None = 480
    batch_size: int = 4
    layers: tuple[int, ...] = ()
    stage: int = -1
    pixel_patch: int = 16
    sequences: tuple[str, ...] = ()
    shown: int = 5
    masks_out: str = ""
    films_out: str = ""

    def __post_init__(self) -> None:
        """Check the sizes."""
        super().__post_init__()
        if (self.image_size is not None and self.image_size < 1) or self.pixel_patch < 1 or self.shown < 1:
            raise ConfigError("--image-size, --pixel-patch and --shown must be at least 1.")


class PixelPatches(Encoder):
    """The baseline of dense protocols: a patch is its own pixels, averaged down to at most 4 x 4 cells."""

    def __init__(self, patch: int = 16, channels: int = 3, cells: int = 4) -> None:
        super().__init__()
        self.name, self.patch_size, self.channels, self.depth = "pixels", patch, channels, 0
        self.cells = min(cells, patch)
        self.embed_dim, self.image_size = channels * self.cells**2, patch

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Return the cells of every patch; masks and kept patches do not apply to pixels and are refused."""
        if mask_BN is not None or keep_BM is not None:
            raise ConfigError("raw pixels have no tokens to mask or keep; choose a ViT.")
        height, width = images_BCHW.shape[-2] // self.patch_size, images_BCHW.shape[-1] // self.patch_size
        cells = F.adaptive_avg_pool2d(images_BCHW, (height * self.cells, width * self.cells))
        patches_BND = F.pixel_unshuffle(cells, self.cells).flatten(2).transpose(1, 2)
        return Features(patches_BND.mean(1), None, None, patches_BND, (height, width))

    @property
    def config(self) -> dict[str, object]:
        """Arguments of the constructor."""
        return {"name": "pixels", "patch": self.patch_size, "channels": self.channels, "cells": self.cells}


class Eyes:
    """An encoder that looks at frames; use it inside `resting(eyes.encoder, eyes.device)`.

    Attributes:
        encoder: the one that is judged, or the patches of raw pixels for `pixels`.
        device: where it works.
        looked: frames encoded so far.
    """

    def __init__(self, encoder: Encoder, normalise: Normalise, config: FrameConfig) -> None:
        self.encoder = PixelPatches(config.pixel_patch) if isinstance(encoder, PixelEncoder) else encoder
        if self.encoder.channels not in (1, 3):
            raise ConfigError(f"'{encoder.name}' takes {encoder.channels} channels; videos have 3 (or 1, as grey).")
        self.device = pick_device(config.device, self.encoder)
        self.dtype = pick_precision(config.precision, self.device)
        self.normalise, self.config, self.looked = normalise, config, 0

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Return the size frames are encoded at: the shorter side as configured, both rounded to whole patches."""
        patch = self.encoder.patch_size
        scale = (self.config.image_size or min(height, width)) / min(height, width)
        return max(1, round(height * scale / patch)) * patch, max(1, round(width * scale / patch)) * patch

    def look(self, frames: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Return feature maps, float32 (B, h, w, D), of frames of one size.

        Raises:
            ConfigError: for a stage, layers or sides that the encoder does not have.
        """
        height, width = self.sides(*frames[0].shape[:2])
        small = [resized(frame, height, width) for frame in frames]
        if self.encoder.channels == 1:
            small = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dtype=np.uint8)[..., None] for frame in small]
        images = torch.from_numpy(np.stack(small)).to(self.device).permute(0, 3, 1, 2)
        with torch.no_grad(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            map_BDhw = self._map(self.normalise(images))
        self.looked += len(frames)
        return map_BDhw.permute(0, 2, 3, 1).float()

    def watch(self, video: Video, order: Sequence[int]) -> Iterator[tuple[int, npt.NDArray[np.uint8], Tensor]]:
        """Yield (position, frame, features (h, w, D)) in the given order; the next chunk is decoded meanwhile."""
        size = self.config.batch_size
        chunks = [order[i : i + size] for i in range(0, len(order), size)]
        with ThreadPoolExecutor(READERS) as pool:
            ahead = [pool.submit(video.frame, i) for i in chunks[0]] if chunks else []
            for number, chunk in enumerate(chunks):
                frames = [job.result() for job in ahead]
                ahead = [pool.submit(video.frame, i) for i in chunks[number + 1]] if number + 1 < len(chunks) else []
                yield from zip(chunk, frames, self.look(frames), strict=True)

    def _map(self, images_BCHW: Tensor) -> Tensor:
        if self.config.layers:
            found = self.encoder.encode_layers(images_BCHW, self.config.layers)
            if len({f.grid for f in found}) > 1:
                raise ConfigError("these --layers have maps of different sizes; take one, or choose it by --stage.")
            return torch.cat([f.patches_BND for f in found], 2).transpose(1, 2).unflatten(2, found[0].grid)
        maps = self.encoder.encode_maps(images_BCHW)
        if not -len(maps) <= self.config.stage < len(maps):
            raise ConfigError(
                f"--stage {self.config.stage}: '{self.encoder.name}' has {len(maps)} "
                f"map{'s' if len(maps) > 1 else ''}, 0 to {len(maps) - 1} or -1 back."
            )
        return maps[self.config.stage]


def patch_labels(ids_HW: npt.NDArray[np.uint8], objects: Sequence[int], h: int, w: int, *, shares: bool) -> Tensor:
    """Return labels of patches from a mask, float32 (h, w, 1 + K), channel 0 the background and void.

    Args:
        ids_HW: the mask.
        objects: numbers of the K objects.
        h: rows of patches.
        w: columns of patches.
        shares: the share of its pixels that each object has; else the object at the patch's centre, one-hot.
    """
    known = [0, *objects]
    index_HW = torch.from_numpy(np.searchsorted(known, ids_HW) * np.isin(ids_HW, known))
    one_hot = F.one_hot(index_HW, len(known)).float()
    if shares:
        return F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1), (h, w)).permute(1, 2, 0)
    rows = ((torch.arange(h) + 0.5) * ids_HW.shape[0] / h).long()
    columns = ((torch.arange(w) + 0.5) * ids_HW.shape[1] / w).long()
    return one_hot[rows][:, columns]
