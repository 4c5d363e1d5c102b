"""How the small-scale recipes fit a backbone to the image size: tiny images need fine patches and a full grid."""

from __future__ import annotations

from typing import Literal

TINY = 64
"""Images up to this side (pixels) count as tiny: CIFAR stem, patches of an eighth of the side, no blur."""


def stem(image_size: int) -> Literal["imagenet", "cifar"]:
    """Return the ResNet stem for an image size: ImageNet's reduces fourfold, which leaves tiny images nothing."""
    return "cifar" if image_size <= TINY else "imagenet"


def patch(image_size: int) -> int:
    """Return a ViT patch side: an 8 x 8 grid for tiny images, 16 pixels (or 8, up to 128) otherwise."""
    if image_size <= TINY:
        return max(1, image_size // 8)
    return 8 if image_size <= 128 else 16


def local(image_size: int, patch_size: int) -> int:
    """Return the side of local crops: DINO's 96/224 of the image, rounded to whole patches and at least two."""
    return max(2, round(image_size * 96 / 224 / patch_size)) * patch_size
