"""Recipes of MSN (arXiv 2204.07141)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import Schedule, cosine
from imprint.methods.msn import MSNConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_vit_base", "paper_vit_large", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ViT-S/16, 1 masked + 10 focal anchors, 800 epochs at batch 1024, as in the released configuration."""
    return RunConfig(
        name="msn",
        method=MSNConfig(),
        encoder=EncoderConfig(name="vit_small_patch16_224", image_size=image_size),
        optim=_adamw(),
        batch_size=1024,
        length=Epochs(800),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2204.07141, Sec. 5 and App. C; facebookresearch/msn, configs/pretrain/msn_vits16.yaml",
            expected="ImageNet-1k linear probe 76.9 %, 1 % of the labels 67.2 %",
        ),
    )


def paper_vit_base(image_size: int = 224) -> RunConfig:
    """ViT-B/16, 30 % of the patches dropped, 600 epochs."""
    return RunConfig(
        name="msn",
        method=MSNConfig(mask_ratio=0.3),
        encoder=EncoderConfig(name="vit_base_patch16_224", image_size=image_size),
        optim=_adamw(),
        batch_size=1024,
        length=Epochs(600),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2204.07141, Sec. 5 and 6 (larger models drop more patches)",
            expected="no configuration of this size is released",
        ),
    )


def paper_vit_large(image_size: int = 224) -> RunConfig:
    """ViT-L/7, 70 % of the patches dropped, 200 epochs."""
    patch = 7 if image_size % 7 == 0 else scale.patch(image_size)
    return RunConfig(
        name="msn",
        method=MSNConfig(mask_ratio=0.7, focal_size=scale.local(image_size, patch)),
        encoder=EncoderConfig(name="vit_large_patch16_224", image_size=image_size, patch_size=patch),
        optim=_adamw(),
        batch_size=1024,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2204.07141, Sec. 5 and 6 (larger models drop more patches)",
            expected="ImageNet-1k, 1 % of the labels 75.1 %",
            deviations="no configuration of this size is released; focal views of 91 pixels, a multiple of the patch.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches, 1 masked + 4 focal anchors, batch 64: one GPU or a CPU, 1k to 50k images."""
    patch = scale.patch(image_size)
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="msn",
        method=MSNConfig(
            prototypes=512,
            projection=128,
            hidden=512,
            focal_views=4,
            focal_size=scale.local(image_size, patch),
            focal_scale=(0.1, 0.4),
            random_scale=(0.3, 1.0),
            colour=0.5,
            blur=0.0 if tiny else 0.5,
            momentum=Schedule(start=0.99, end=1.0, shape="linear"),
        ),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", image_size=image_size, patch_size=patch),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, per=64, rule="sqrt", floor=1e-6, warmup=Steps(100)),
            weight_decay=cosine(0.04, 0.1),
            clip=3.0,
        ),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2204.07141, App. C, scaled down",
            expected="docs/results.md",
            deviations="fewer prototypes and focal views, a narrower head and a faster target network (momentum 0.99).",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="msn",
        method=MSNConfig(
            prototypes=24,
            projection=16,
            hidden=32,
            focal_views=2,
            focal_size=16,
            random_scale=(0.3, 1.0),
            blur=0.0,
        ),
        encoder=scale.tiny_vit(image_size),
        optim=_adamw(warmup=Steps(2)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adamw(warmup: Epochs | Steps = Epochs(15)) -> OptimConfig:
    """AdamW at 1e-3 from 2e-4; rate and decay would end after 1.25 times the run, their clock starts at 1."""
    return OptimConfig(
        name="adamw",
        lr=LR(base=1e-3, per=1024, floor=1e-6, warmup=warmup, warmup_from=0.2, stretch=1.25, counted_from=1),
        weight_decay=Schedule(start=0.04, end=0.4, stretch=1.25, counted_from=1),
        clip=3.0,
    )
