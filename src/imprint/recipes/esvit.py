"""Recipes of EsViT (arXiv 2106.09785)."""

from __future__ import annotations

from typing import Literal

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant, cosine
from imprint.methods.esvit import EsViTConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_swin_base", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """Swin-T with windows of 7, 2 x 224 + 8 x 96 crops, 300 epochs at batch 512, as in the paper."""
    return RunConfig(
        name="esvit",
        method=EsViTConfig(train_gain=True),  # --norm_last_layer false in the public command
        encoder=EncoderConfig(name="swin_tiny_patch4_window7_224", image_size=image_size, drop_path=0.1),
        optim=_adamw(5e-4),
        batch_size=512,
        length=Epochs(300),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2106.09785, Sec. 4; microsoft/esvit, README (Swin-T command)",
            expected="ImageNet-1k kNN 75.7 %, linear probe 78.0 % (Table 1)",
        ),
    )


def paper_swin_base(image_size: int = 224) -> RunConfig:
    """Swin-B with windows of 14; the region task joins after 200 of 300 epochs."""
    return RunConfig(
        name="esvit",
        method=EsViTConfig(region_start=Epochs(200)),
        encoder=EncoderConfig(
            name="swin_base_patch4_window7_224", image_size=image_size, drop_path=0.2, arch=Arch(window=14)
        ),
        optim=_adamw(5e-4),
        batch_size=512,
        length=Epochs(300),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2106.09785, Sec. 4; microsoft/esvit, README (Swin-B, W=14: continued from epoch 200 with the "
            "region task) and experiments/imagenet/swin",
            expected="ImageNet-1k kNN 79.3 %, linear probe 81.3 % (Table 1)",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """A narrow Swin of two or three stages, 2 + 4 crops, batch 64: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    arch = Arch(embed_dim=96, layers=(2, 2), heads=(3, 6), window=4)
    if not tiny:
        arch = Arch(embed_dim=64, layers=(2, 2, 2), heads=(2, 4, 8), window=4)
    return RunConfig(
        name="esvit",
        method=EsViTConfig(
            prototypes=1024,
            hidden=512,
            bottleneck=128,
            teacher_temp=constant(0.04),
            momentum=cosine(0.99, 1.0),
            freeze_prototypes=Steps(50),
            local_crops=4,
            local_size=scale.local(image_size, 8 if tiny else 16),
            local_scale=(0.1, 0.4),
            colour=0.5 if tiny else 1.0,
            blur=0.0 if tiny else 1.0,
        ),
        encoder=EncoderConfig(
            name="swin_tiny_patch4_window7_224",
            image_size=image_size,
            patch_size=4,
            arch=arch,
        ),
        optim=_adamw(1e-3, per=64, rule="sqrt", warmup=Steps(100), weight_decay=(0.04, 0.1)),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2106.09785, scaled down",
            expected="docs/results.md",
            deviations="a Swin of two or three stages, fewer prototypes and local crops, a faster teacher (momentum "
            "0.99) and a constant sharp teacher temperature 0.04: with few images and steps the paper's slow teacher "
            "hardly moves.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-stage Swin: for tests."""
    return RunConfig(
        name="esvit",
        method=EsViTConfig(
            prototypes=32,
            hidden=32,
            bottleneck=16,
            local_crops=2,
            local_size=16,
            colour=0.5,
            blur=0.0,
            freeze_prototypes=Steps(2),
        ),
        encoder=EncoderConfig(
            name="swin_tiny_patch4_window7_224",
            image_size=image_size,
            patch_size=4,
            drop_path=0.1,
            arch=Arch(embed_dim=16, layers=(1, 1), heads=(1, 2), window=4),
        ),
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
