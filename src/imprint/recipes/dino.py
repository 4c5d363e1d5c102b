"""Recipes of DINO (arXiv 2104.14294)."""

from __future__ import annotations

from typing import Literal

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import Schedule, constant, cosine
from imprint.methods.dino import DINOConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_resnet50", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ViT-S/16, 2 x 224 + 8 x 96 crops, 800 epochs at batch 1024, as in the paper."""
    return RunConfig(
        name="dino",
        method=DINOConfig(train_gain=True),  # --norm_last_layer false in the public ViT-S recipe
        encoder=EncoderConfig(name="vit_small_patch16_224", image_size=image_size, drop_path=0.1),
        optim=_adamw(5e-4),
        batch_size=1024,
        length=Epochs(800),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2104.14294, Sec. 3.2 and App. D; facebookresearch/dino, README (--norm_last_layer false)",
            expected="ImageNet-1k kNN 74.5 %, linear probe 77.0 % (Table 2)",
        ),
    )


def paper_resnet50(image_size: int = 224) -> RunConfig:
    """ResNet-50, SGD, 800 epochs."""
    return RunConfig(
        name="dino",
        method=DINOConfig(global_scale=(0.14, 1.0), local_scale=(0.05, 0.14)),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="sgd",
            lr=LR(base=0.03, floor=1e-6, warmup=Epochs(10), warmup_reaches_peak=True),
            weight_decay=constant(1e-4),
            momentum=0.9,
            clip=3.0,
        ),
        batch_size=1024,
        length=Epochs(800),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2104.14294, Table 2; facebookresearch/dino, README (ResNet-50 command)",
            expected="ImageNet-1k kNN 67.5 %, linear probe 75.3 % (Table 2)",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches, 2 + 4 crops, batch 64: one GPU or a CPU, 1k to 50k images."""
    patch = scale.patch(image_size)
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="dino",
        method=DINOConfig(
            prototypes=1024,
            hidden=512,
            bottleneck=128,
            teacher_temp=_teacher_temp(0.04, Epochs(0)),
            momentum=cosine(0.99, 1.0),
            local_crops=4,
            local_size=scale.local(image_size, patch),
            local_scale=(0.1, 0.4),
            colour=0.5 if tiny else 1.0,
            blur=0.0 if tiny else 1.0,
        ),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", image_size=image_size, patch_size=patch),
        optim=_adamw(1e-3, per=64, rule="sqrt", warmup=Epochs(1), weight_decay=(0.04, 0.1)),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2104.14294, App. D, scaled down",
            expected="docs/results.md",
            deviations="fewer prototypes and local crops, a faster teacher (momentum 0.99) and constant sharp teacher "
            "temperature 0.04: with few images and steps the paper's slow teacher hardly moves.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="dino",
        method=DINOConfig(
            prototypes=32,
            hidden=32,
            bottleneck=16,
            local_crops=2,
            local_size=16,
            colour=0.5,
            blur=0.0,
            freeze_prototypes=Steps(2),
        ),
        encoder=scale.tiny_vit(image_size, drop_path=0.1),
        optim=_adamw(5e-4, warmup=Steps(2)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adamw(
    base: float,
    *,
    per: int = 256,
    rule: Literal["linear", "sqrt"] = "linear",
    warmup: Epochs | Steps = Epochs(10),
    weight_decay: tuple[float, float] = (0.04, 0.4),
) -> OptimConfig:
    return OptimConfig(
        name="adamw",
        lr=LR(base=base, per=per, rule=rule, floor=1e-6, warmup=warmup, warmup_reaches_peak=True),
        weight_decay=cosine(*weight_decay),
        clip=3.0,
    )


def _teacher_temp(final: float, warmup: Epochs) -> Schedule:
    return Schedule(
        start=final, shape="constant", warmup=warmup, warmup_from=0.04, warmup_reaches_start=True, per_epoch=True
    )
