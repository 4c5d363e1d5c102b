"""Recipes of I-JEPA (arXiv 2301.08243)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import Schedule, constant
from imprint.methods.ijepa import IJEPAConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_vit_huge", "paper_vit_large", "small"]

_START = (
    "the encoder starts as timm starts it; the public code also divides the last layers of block l by sqrt(2 l), as "
    "the predictor's are here."
)


def paper(image_size: int = 224) -> RunConfig:
    """ViT-B/16 without class token, predictor of 6 blocks, 600 epochs at batch 2048."""
    return RunConfig(
        name="ijepa",
        method=IJEPAConfig(),
        encoder=EncoderConfig(name="vit_base_patch16_gap_224", image_size=image_size, positions="sincos"),
        optim=_adamw(),
        batch_size=2048,
        length=Epochs(600),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2301.08243, Sec. 4 and App. A; facebookresearch/ijepa, configs",
            expected="ImageNet-1k linear probe 72.9 % (Table 1)",
            deviations=_START,
        ),
    )


def paper_vit_large(image_size: int = 224) -> RunConfig:
    """ViT-L/16 without class token, predictor of 12 blocks, 600 epochs at batch 2048."""
    return RunConfig(
        name="ijepa",
        method=IJEPAConfig(predictor_depth=12, predictor_heads=16),
        encoder=EncoderConfig(
            name="vit_base_patch16_gap_224",
            image_size=image_size,
            positions="sincos",
            arch=Arch(embed_dim=1024, depth=24, num_heads=16),
        ),
        optim=_adamw(),
        batch_size=2048,
        length=Epochs(600),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2301.08243, Sec. 4 and App. A; facebookresearch/ijepa, configs",
            expected="ImageNet-1k linear probe 77.5 % (Table 1)",
            deviations=_START,
        ),
    )


def paper_vit_huge(image_size: int = 224) -> RunConfig:
    """ViT-H/14 without class token, 300 epochs at batch 2048, as in the released configuration."""
    return RunConfig(
        name="ijepa",
        method=IJEPAConfig(
            predictor_depth=12,
            predictor_heads=16,
            momentum=Schedule(start=0.996, end=1.0, shape="linear"),
        ),
        encoder=EncoderConfig(name="vit_huge_patch14_gap_224", image_size=image_size, positions="sincos"),
        optim=_adamw(stretch=1.0),
        batch_size=2048,
        length=Epochs(300),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="facebookresearch/ijepa, configs/in1k_vith14_ep300.yaml (ipe_scale 1: schedules are not stretched)",
            expected="ImageNet-1k linear probe 79.3 % (Table 1); 16 A100, under 72 hours",
            deviations=_START,
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches, a predictor of two blocks, batch 64: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="ijepa",
        method=IJEPAConfig(
            predictor_width=96,
            predictor_depth=2,
            predictor_heads=3,
            momentum=Schedule(start=0.99, end=1.0, shape="linear"),
        ),
        encoder=EncoderConfig(
            name="vit_base_patch16_gap_224",
            image_size=image_size,
            patch_size=scale.patch(image_size),
            positions="sincos",
            arch=Arch(embed_dim=192, depth=12, num_heads=3),
        ),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, per=64, rule="sqrt", floor=1e-6, warmup=Steps(100), warmup_from=0.2),
            weight_decay=constant(0.04),
        ),
        batch_size=64,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2301.08243, App. A, scaled down",
            expected="docs/results.md",
            deviations="a lighter predictor and a faster target encoder (momentum 0.99).",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT on a grid of 4 x 4: for tests."""
    return RunConfig(
        name="ijepa",
        method=IJEPAConfig(
            min_keep=2,
            predictor_width=16,
            predictor_depth=1,
            predictor_heads=2,
        ),
        encoder=EncoderConfig(
            name="vit_base_patch16_gap_224",
            image_size=image_size,
            patch_size=8,
            positions="sincos",
            arch=Arch(embed_dim=32, depth=2, num_heads=2),
        ),
        optim=_adamw(warmup=Steps(2)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adamw(warmup: Epochs | Steps = Epochs(40), stretch: float = 1.25) -> OptimConfig:
    """AdamW at 1e-3 from 2e-4 without clipping; the schedules' clock starts at 1."""
    return OptimConfig(
        name="adamw",
        lr=LR(base=1e-3, per=2048, floor=1e-6, warmup=warmup, warmup_from=0.2, stretch=stretch, counted_from=1),
        weight_decay=Schedule(start=0.04, end=0.4, stretch=stretch, counted_from=1),
    )
