"""Where a ViT looks: attention of the class token in one block, one map per head (DINO, arXiv 2104.14294, Fig. 1).

Shapes: B images, H heads, T tokens (prefix first), N = gh * gw patches.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.backbones.encoder import Encoder
from imprint.viz.colours import heat
from imprint.viz.raster import Picture, resized, save_png, sheet

Maps = npt.NDArray[np.float32]


def attention_maps(encoder: Encoder, images_BCHW: Tensor, layer: int = -1) -> Maps:
    """Return attention to the patches, float32 (B, H, gh, gw), each map summing to the share it gives to patches.

    The query is the class token; without one, the mean over all patches' queries.

    Raises:
        ConfigError: for an encoder without attention.
    """
    with torch.no_grad():
        weights_BHTT = encoder.attention(images_BCHW, layer).float().cpu()
        features = encoder.encode(images_BCHW)
    prefix = encoder.prefix_tokens
    rows = weights_BHTT[:, :, :1] if features.cls_BD is not None else weights_BHTT[:, :, prefix:]
    maps = rows[..., prefix:].mean(2)
    return np.asarray(maps.numpy(), dtype=np.float32).reshape(*maps.shape[:2], *features.grid)


def overlay(image: Picture, map_hw: npt.NDArray[np.float32], strength: float = 0.75) -> Picture:
    """Lay one map over an image: scaled to its own range, opaque where attention is high, bilinear between patches."""
    import cv2

    height, width = image.shape[:2]
    low, high = float(map_hw.min()), float(map_hw.max())
    scaled = (map_hw - low) / (high - low) if high > low else np.zeros_like(map_hw)
    large = cv2.resize(scaled.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    alpha = strength * (0.35 + 0.65 * large)
    return np.asarray(np.rint(image * (1 - alpha) + heat(large[..., 0]) * alpha), dtype=np.uint8)


def attention_sheet(images: list[Picture], maps: Maps, *, heads: int = 6, side: int = 112) -> Picture:
    """Return a sheet: a column per image, from above the image, the mean over heads, the first `heads` heads."""
    bases = [resized(image, side, side) for image in images]
    rows = [bases, [overlay(base, own.mean(0)) for base, own in zip(bases, maps, strict=True)]]
    for head in range(min(heads, maps.shape[1])):
        rows.append([overlay(base, own[head]) for base, own in zip(bases, maps, strict=True)])
    return sheet(rows)


def save_attention(images: list[Picture], maps: Maps, path: str | Path) -> Path:
    """Write the sheet as a PNG file."""
    return save_png(attention_sheet(images, maps), path)
