"""Recipes of iBOT (arXiv 2111.07832)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from imprint.core.progress import Duration, Epochs, Steps
from imprint.core.schedules import Schedule, constant, cosine
from imprint.methods.ibot import IBOTConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_random_masks", "paper_swin_tiny", "paper_vit_base", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ViT-S/16, 2 x 224 + 10 x 96 crops, 800 epochs at batch 1024, as in the paper."""
    return RunConfig(
        name="ibot",
        method=IBOTConfig(train_gain=True),  # --norm_last_layer false in the public ViT-S command
        encoder=EncoderConfig(name="vit_small_patch16_224", image_size=image_size, drop_path=0.1),
        optim=_adamw(5e-4),
        batch_size=1024,
        length=Epochs(800),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2111.07832, Sec. 4.1 and App. E; bytedance/ibot, README (ViT-S/16 command)",
            expected="ImageNet-1k kNN 75.2 %, linear probe 77.9 %, fine-tuned 82.3 % (README)",
        ),
    )


def paper_vit_base(image_size: int = 224) -> RunConfig:
    """ViT-B/16, 400 epochs, crops divided at an area of 0.32, a lower clip and a longer freeze of the prototypes."""
    return _vit_base(_base_method(), image_size, "kNN 77.1 %, linear probe 79.5 %, fine-tuned 84.0 %")


def paper_random_masks(image_size: int = 224) -> RunConfig:
    """ViT-B/16 with random masks of U(.65, .75) of the patches instead of blocks."""
    method = dataclasses.replace(_base_method(), mask_shape="random", mask_shares=((0.0, 0.0), (0.7, 0.05)))
    return _vit_base(method, image_size, "fine-tuned 84.1 %")


def paper_swin_tiny(image_size: int = 224) -> RunConfig:
    """Swin-T with windows of 7, 300 epochs, masks from epoch 50 on."""
    return RunConfig(
        name="ibot",
        method=IBOTConfig(train_gain=True, mask_start=Epochs(50)),
        encoder=EncoderConfig(name="swin_tiny_patch4_window7_224", image_size=image_size, drop_path=0.1),
        optim=_adamw(5e-4),
        batch_size=1024,
        length=Epochs(300),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2111.07832, Sec. 4.1; bytedance/ibot, README (Swin command)",
            expected="ImageNet-1k kNN 75.3 %, linear probe 78.6 % (README)",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches, 2 + 4 crops, batch 64: one GPU or a CPU, 1k to 50k images."""
    patch = scale.patch(image_size)
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="ibot",
        method=IBOTConfig(
            prototypes=1024,
            hidden=512,
            bottleneck=128,
            head_norm=True,
            patch_weight=0.3,
            teacher_temp=constant(0.04),
            patch_teacher_temp=constant(0.04),
            momentum=cosine(0.996, 1.0),
            freeze_prototypes=Steps(50),
            local_crops=4,
            local_size=scale.local(image_size, patch),
            local_scale=(0.1, 0.4),
            colour=0.5 if tiny else 1.0,
            blur=0.0 if tiny else 1.0,
        ),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", image_size=image_size, patch_size=patch),
        optim=_adamw(1e-3, per=64, rule="sqrt", warmup=Steps(100), weight_decay=(0.04, 0.1)),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2111.07832, App. E, scaled down",
            expected="docs/results.md",
            deviations="fewer prototypes and local crops, constant sharp teacher temperatures 0.04, BatchNorm in the "
            "head and a patch term of weight 0.3: in a few thousand steps the patch term at weight 1 without BatchNorm "
            "settles on the patches' places, and the class tokens learn nothing.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="ibot",
        method=IBOTConfig(
            prototypes=32,
            patch_prototypes=24,
            hidden=32,
            bottleneck=16,
            local_crops=2,
            local_size=16,
            local_scale=(0.1, 0.4),
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


def _warmed(warmup: Duration) -> Schedule:
    return Schedule(
        start=0.07, shape="constant", warmup=warmup, warmup_from=0.04, warmup_reaches_start=True, per_epoch=True
    )


def _vit_base(method: IBOTConfig, image_size: int, expected: str) -> RunConfig:
    return RunConfig(
        name="ibot",
        method=method,
        encoder=EncoderConfig(name="vit_base_patch16_224", image_size=image_size, drop_path=0.1),
        optim=_adamw(7.5e-4, floor=2e-6, clip=0.3),
        batch_size=1024,
        length=Epochs(400),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2111.07832, App. E; bytedance/ibot, settings of the public ViT-B/16",
            expected=f"ImageNet-1k {expected} (README)",
        ),
    )


def _base_method() -> IBOTConfig:
    return IBOTConfig(
        teacher_temp=_warmed(Epochs(50)),
        patch_teacher_temp=_warmed(Epochs(50)),
        freeze_prototypes=Epochs(3),
        global_scale=(0.32, 1.0),
        local_scale=(0.05, 0.32),
    )


def _adamw(
    base: float,
    *,
    per: int = 256,
    rule: Literal["linear", "sqrt"] = "linear",
    warmup: Epochs | Steps = Epochs(10),
    weight_decay: tuple[float, float] = (0.04, 0.4),
    floor: float = 1e-6,
    clip: float = 3.0,
) -> OptimConfig:
    return OptimConfig(
        name="adamw",
        lr=LR(base=base, per=per, rule=rule, floor=floor, warmup=warmup, warmup_reaches_peak=True),
        weight_decay=cosine(*weight_decay),
        clip=clip,
    )
