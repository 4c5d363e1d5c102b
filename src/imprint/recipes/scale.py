"""How the small-scale recipes fit a backbone to the image size: tiny images need fine patches and a full grid."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from imprint.backbones.arch import Arch
from imprint.backbones.load import is_stored
from imprint.core.progress import Epochs
from imprint.core.schedules import constant
from imprint.train.config import LR, EncoderConfig, OptimConfig

TINY = 64
"""Images up to this side (pixels) count as tiny: CIFAR stem, patches of an eighth of the side, no blur."""


def stem(image_size: int) -> Literal["imagenet", "cifar"]:
    """Return the ResNet stem for an image size: ImageNet's reduces fourfold, which leaves tiny images nothing."""
    return "cifar" if image_size <= TINY else "imagenet"


def resnet18(image_size: int) -> EncoderConfig:
    """Return the encoder of the small-scale recipes for CNNs."""
    return EncoderConfig(name="resnet18", image_size=image_size, stem=stem(image_size))


def narrow_resnet(image_size: int) -> EncoderConfig:
    """Return a ResNet of four narrow blocks: for tests."""
    arch = Arch(layers=(1, 1, 1, 1), channels=(16, 16, 32, 32))
    return EncoderConfig(name="resnet18", image_size=image_size, stem="cifar", arch=arch)


def tiny_vit(image_size: int, **changes: Any) -> EncoderConfig:
    """Return a ViT of two narrow blocks and patches of 8 pixels: for tests."""
    arch = Arch(embed_dim=32, depth=2, num_heads=2)
    settings: dict[str, Any] = {"name": "vit_tiny_patch16_224", "patch_size": 8, "arch": arch}
    return EncoderConfig(image_size=image_size, **settings | changes)


def adamw() -> OptimConfig:
    """Return the optimizer that learned fastest in minutes on few images: AdamW at 2e-3 per 128 images."""
    return OptimConfig(
        name="adamw", lr=LR(base=2e-3, per=128, rule="sqrt", warmup=Epochs(1)), weight_decay=constant(1e-4)
    )


def patch(image_size: int) -> int:
    """Return a ViT patch side: an 8 x 8 grid for tiny images, 16 pixels (or 8, up to 128) otherwise."""
    if image_size <= TINY:
        return max(1, image_size // 8)
    return 8 if image_size <= 128 else 16


def local(image_size: int, patch_size: int) -> int:
    """Return the side of local crops: DINO's 96/224 of the image, rounded to whole patches and at least two."""
    return max(2, round(image_size * 96 / 224 / patch_size)) * patch_size


def with_backbone(settings: EncoderConfig, name: str) -> EncoderConfig:
    """Return a recipe's encoder settings for another backbone.

    What belongs to the recipe's own backbone (patch side, positions, stem, sizes) does not carry over: a stored encoder
    keeps its own shape, a ViT gets patches and a ResNet a stem that fit the image size.
    """
    size = settings.image_size
    other = dataclasses.replace(
        settings, name=name, patch_size=None, positions=None, init="timm", stem="imagenet", arch=Arch()
    )
    bare = name.rpartition(":")[2]
    if is_stored(name) or bare == settings.name:
        return dataclasses.replace(settings, name=name) if bare == settings.name else other
    if bare.startswith("beit"):
        return dataclasses.replace(other, patch_size=patch(size) if size <= 128 else None)
    if bare.startswith(("vit_", "deit")):
        same_kind = settings.name.startswith(("vit_", "deit"))
        return dataclasses.replace(
            other,
            patch_size=patch(size) if size <= 128 else None,
            positions=settings.positions if same_kind else None,
            init=settings.init if same_kind else "timm",
        )
    return dataclasses.replace(other, stem=stem(size)) if bare.startswith("resnet") else other
