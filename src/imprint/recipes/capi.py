"""Recipes of CAPI (arXiv 2502.08769)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant, cosine
from imprint.methods.capi import CAPIConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ViT-L/14 with rotary positions and 16 registers, 500,000 steps at batch 16,384, as in the paper."""
    return RunConfig(
        name="capi",
        method=CAPIConfig(),
        encoder=EncoderConfig(
            name="vit_large_patch16_dinov3",
            image_size=image_size,
            patch_size=14 if image_size % 14 == 0 else scale.patch(image_size),
            registers=16,
            drop_path=0.2,
            drop_samples=True,
            uniform_drop_path=True,
            init="mae",
        ),
        # The public cosine stops at 0.8 of its half period (truncate_cos): a run stretched by 1.225.
        optim=_adamw(LR(base=1e-3, rule="none", warmup=Steps(50_000), warmup_reaches_peak=True, stretch=1.225)),
        batch_size=16_384,
        length=Steps(500_000),
        probe_every=Steps(20_000),
        provenance=Provenance(
            source="arXiv 2502.08769; facebookresearch/capi, default_pretrain_config.yaml (32 GPUs of 512)",
            expected="ImageNet-1k attentive probe 83.8 % (LVD-142M)",
            deviations="timm's rotary ViT: a class token beside the registers, LayerNorm for RMSNorm, LayerScale, "
            "biases, and registers without rotary coordinates of their own.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches and a two-block predictor, batch 128: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="capi",
        method=CAPIConfig(
            clusters=512,
            predictor_width=128,
            predictor_depth=2,
            predictor_heads=4,
            predictor_drop_path=0.0,
            predict_share=0.5,
            patch_embed_lr=1.0,
            momentum=cosine(0.99, 1.0),
            crop_scale=(0.4, 1.0),
        ),
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=image_size,
            patch_size=scale.patch(image_size),
            positions="sincos",
            init="mae",
        ),
        optim=_adamw(LR(base=1e-3, per=128, rule="sqrt", warmup=Steps(100)), decay=0.05),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2502.08769, scaled down",
            expected="docs/results.md",
            deviations="512 clusters, a two-block predictor of half of the masked patches, a faster teacher, "
            "fixed sin-cos positions: few images and steps.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="capi",
        method=CAPIConfig(
            clusters=32,
            predictor_width=32,
            predictor_depth=1,
            predictor_heads=2,
            predictor_drop_path=0.0,
            predict_share=0.5,
            momentum=cosine(0.99, 1.0),
        ),
        encoder=scale.tiny_vit(image_size, registers=4, init="mae"),
        optim=_adamw(LR(base=1e-3, rule="none", warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adamw(lr: LR, *, decay: float = 0.1) -> OptimConfig:
    return OptimConfig(name="adamw", lr=lr, weight_decay=constant(decay), betas=(0.9, 0.95))
