"""Augmentations of a batch after its views were cut, where the batch lies: RandAugment and random erasing.

What happens to an image is a function of (seed, step, its position in the source), so it depends neither on the rest of
the batch nor on the device. The views themselves come from the engine (`augment`).

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.core.rng import key, seed_of, uniforms
from imprint.data.batch import Normalise
from imprint.data.draws import drawn_operations
from imprint.data.views import Operations
from imprint.ops.rand_augment import rand_augment

_ERASING_TRIES = 10
_ERASED_SHARE = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)

Index = npt.NDArray[np.int64]


def draw_operations(
    seed: int, step: int, index_B: Index, magnitude: float, spread: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the operations (2, B), -1 for none, and signed strengths (2, B) in [-1, 1] of every image.

    Each of two operations is drawn from all, applied with probability one half, at a magnitude N(magnitude, spread^2)
    clipped to [0, 10] (timm's `rand-m9-mstd0.5-inc1`, which MAE fine-tunes with).
    """
    wanted = Operations(magnitude=magnitude, spread=spread)
    keys_BN = key(seed, "rand-augment", step, index_B[:, None], np.arange(wanted.number)[None, :])
    operation, strength = drawn_operations(keys_BN, wanted)
    return np.ascontiguousarray(operation.T), np.ascontiguousarray(strength.T)


def rand_augmented(
    images_BCHW: Tensor, index_B: Index, seed: int, step: int, magnitude: float, spread: float, normalise: Normalise
) -> Tensor:
    """Return images after two random operations each (RandAugment, arXiv 1909.13719); what comes in is the mean colour.

    Args:
        images_BCHW: uint8, or uint16, which is worked on with the 8 bits that the operations are defined for.
        index_B: positions of the images in their source.
        seed: of the evaluation.
        step: of the training.
        magnitude: in [0, 10].
        spread: standard deviation of the magnitude.
        normalise: its mean is the colour.
    """
    deep = images_BCHW.dtype == torch.uint16
    images = (images_BCHW.int() // 257).to(torch.uint8) if deep else images_BCHW
    mean, _ = normalise.per_channel(images.shape[1])
    fill = torch.tensor([min(255.0, float(round(255 * m))) for m in mean])
    operations, strengths = draw_operations(seed, step, index_B, magnitude, spread)
    for operation_B, strength_B in zip(operations, strengths, strict=True):
        images = rand_augment(images, torch.from_numpy(operation_B), torch.from_numpy(strength_B), fill)
    return (images.int() * 257).to(torch.uint16) if deep else images


def draw_rectangles(
    seed: int, step: int, index_B: Index, probability: float, height: int, width: int
) -> npt.NDArray[np.int64]:
    """Return what is erased of every image, (B, 4): top, bottom, left, right; all 0 for nothing.

    With the given probability: an area share U(.02, 1/3), a log-aspect U(log .3, log 1/.3), the first of ten tries that
    is smaller than the image, anywhere in it (random erasing, arXiv 1708.04896, with timm's bounds).
    """
    u = uniforms(key(seed, "erasing", step, index_B), 3 + 2 * _ERASING_TRIES)
    share = _ERASED_SHARE[0] + (_ERASED_SHARE[1] - _ERASED_SHARE[0]) * u[:, 3 : 3 + _ERASING_TRIES]
    low, high = (math.log(a) for a in _ERASED_ASPECT)
    aspect = np.exp(low + (high - low) * u[:, 3 + _ERASING_TRIES :])
    area = share * height * width
    tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (tall < height) & (wide < width)
    rows, first = np.arange(len(index_B)), fits.argmax(1)
    chosen = (u[:, 0] < probability) & fits.any(1)
    h, w = (np.where(chosen, side[rows, first], 0).astype(np.int64) for side in (tall, wide))
    top = np.where(chosen, (u[:, 1] * (height - h + 1)).astype(np.int64), 0)
    left = np.where(chosen, (u[:, 2] * (width - w + 1)).astype(np.int64), 0)
    return np.stack([top, top + h, left, left + w], axis=1)


def erased(images_BCHW: Tensor, index_B: Index, seed: int, step: int, probability: float) -> Tensor:
    """Return normalised images of which some lost a rectangle to noise from N(0, 1) (timm's mode `pixel`)."""
    height, width = images_BCHW.shape[2:]
    drawn = draw_rectangles(seed, step, index_B, probability, height, width)
    if not drawn.any():
        return images_BCHW
    rows = np.flatnonzero(drawn[:, 1] > drawn[:, 0])
    place = torch.from_numpy(rows).to(images_BCHW.device)
    box = torch.from_numpy(drawn[rows]).to(images_BCHW.device)[:, :, None]
    y, x = (torch.arange(side, device=images_BCHW.device) for side in (height, width))
    inside = ((y >= box[:, 0]) & (y < box[:, 1]))[:, None, :, None] & ((x >= box[:, 2]) & (x < box[:, 3]))[
        :, None, None
    ]
    generator = torch.Generator(images_BCHW.device).manual_seed(seed_of(seed, "erasing-noise", step))
    shape = (len(rows), *images_BCHW.shape[1:])
    noise = torch.randn(shape, generator=generator, device=images_BCHW.device, dtype=images_BCHW.dtype)
    result = images_BCHW.clone()
    result[place] = torch.where(inside, noise, images_BCHW[place])
    return result


def kept_share(seed: int, alpha: float) -> float:
    """Return what mixing keeps of an image: lambda from Beta(alpha, alpha) (mixup, arXiv 1710.09412, Sec. 2)."""
    return float(np.random.default_rng(seed).beta(alpha, alpha))
