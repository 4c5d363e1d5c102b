"""Recipes of MaskFeat (arXiv 2112.09133)."""

from __future__ import annotations

import dataclasses

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.maskfeat import MaskFeatConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_features", "paper_pixels", "paper_vit_large", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ViT-B/16 on histograms of oriented gradients, 1600 epochs, as in the paper."""
    return RunConfig(
        name="maskfeat",
        method=MaskFeatConfig(),
        encoder=EncoderConfig(name="vit_base_patch16_224", image_size=image_size),
        optim=_adamw(),
        batch_size=2048,
        length=Epochs(1600),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2112.09133, Sec. 4.1 and App.; facebookresearch/SlowFast, "
            "configs/masked_ssl/in1k_VIT_B_MaskFeat_PT.yaml (rate per 256 images, clipping, warm-up, crop)",
            expected="ImageNet-1k fine-tuned 84.0 % (1600 epochs)",
        ),
    )


def paper_vit_large(image_size: int = 224) -> RunConfig:
    """ViT-L/16 on histograms, 1600 epochs."""
    base = paper(image_size)
    return dataclasses.replace(
        base,
        encoder=dataclasses.replace(base.encoder, name="vit_large_patch16_224"),
        provenance=Provenance(
            source="arXiv 2112.09133, Sec. 4.1; facebookresearch/SlowFast, in1k_VIT_L_MaskFeat_PT.yaml",
            expected="ImageNet-1k fine-tuned 85.7 % (1600 epochs)",
        ),
    )


def paper_pixels(image_size: int = 224) -> RunConfig:
    """ViT-B/16 on pixels, 300 epochs: the weaker target of Table 2."""
    base = paper(image_size)
    return dataclasses.replace(
        base,
        method=MaskFeatConfig(target="pixels"),
        length=Epochs(300),
        provenance=Provenance(source="arXiv 2112.09133, Sec. 3.2 and Table 2", expected="fine-tuned 82.5 %"),
    )


def paper_features(image_size: int = 224) -> RunConfig:
    """ViT-B/16 on features of DINO's ViT-B/16, 300 epochs: the best target that was trained without labels (Table 2).

    Its weights are timm's; `method.teacher` takes any other encoder, also one of a run of yours.
    """
    base = paper(image_size)
    return dataclasses.replace(
        base,
        method=MaskFeatConfig(target="features", teacher="timm:vit_base_patch16_224.dino"),
        length=Epochs(300),
        provenance=Provenance(source="arXiv 2112.09133, Sec. 3.2 and Table 2", expected="fine-tuned 84.0 %"),
    )


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches, batch 64: one GPU or a CPU, 1k to 50k images."""
    patch = scale.patch(image_size)
    grid = (image_size // patch) ** 2
    return RunConfig(
        name="maskfeat",
        method=MaskFeatConfig(cell=patch if patch < 8 else 8, min_block=max(1, min(16, grid // 12))),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", image_size=image_size, patch_size=patch, positions="sincos"),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, per=64, rule="sqrt", warmup=Steps(100)),
            weight_decay=constant(0.05),
            clip=1.0,
        ),
        batch_size=64,
        length=Epochs(400),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2112.09133, scaled down",
            expected="docs/results.md",
            deviations="a higher rate with a looser clip for the small model and batch, smaller blocks and, for tiny "
            "patches, one cell per patch; fixed positions.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="maskfeat",
        method=MaskFeatConfig(min_block=2),
        encoder=scale.tiny_vit(image_size),
        optim=_adamw(Steps(2)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adamw(warmup: Epochs | Steps = Epochs(30)) -> OptimConfig:
    lr = LR(base=2e-4, floor=1e-6, warmup=warmup, warmup_from=0.005)  # from 1e-6 per 256 images
    return OptimConfig(name="adamw", lr=lr, weight_decay=constant(0.05), clip=0.02)
