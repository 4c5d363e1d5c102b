"""Recipes of MAE (arXiv 2111.06377)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.mae import MAEConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_vit_large", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ViT-B/16, 1600 epochs at batch 4096, as in the paper."""
    return RunConfig(
        name="mae",
        method=MAEConfig(),
        encoder=EncoderConfig(name="vit_base_patch16_224", image_size=image_size, positions="sincos", init="mae"),
        optim=_adamw(LR(base=1.5e-4, warmup=Epochs(40))),
        batch_size=4096,
        length=Epochs(1600),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2111.06377, App. A.1, Table 8; facebookresearch/mae, PRETRAIN.md (--norm_pix_loss)",
            expected="ImageNet-1k fine-tuned 83.6 %, linear probe 68.0 % (Table 3, Sec. 4)",
        ),
    )


def paper_vit_large(image_size: int = 224) -> RunConfig:
    """ViT-L/16, 1600 epochs at batch 4096."""
    return RunConfig(
        name="mae",
        method=MAEConfig(),
        encoder=EncoderConfig(name="vit_large_patch16_224", image_size=image_size, positions="sincos", init="mae"),
        optim=_adamw(LR(base=1.5e-4, warmup=Epochs(40))),
        batch_size=4096,
        length=Epochs(1600),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2111.06377, App. A.1", expected="ImageNet-1k fine-tuned 85.9 %, linear probe 75.8 %"
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches and a one-block decoder, batch 64: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="mae",
        method=MAEConfig(decoder_width=96, decoder_depth=1, decoder_heads=3),
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=image_size,
            patch_size=scale.patch(image_size),
            positions="sincos",
            init="mae",
        ),
        optim=_adamw(LR(base=1e-3, per=64, rule="sqrt", warmup=Epochs(1))),
        batch_size=64,
        length=Epochs(400),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2111.06377, App. A.1, scaled down",
            expected="docs/results.md",
            deviations="a lighter decoder (Table 1a: one or two blocks fine-tune as well) and a higher rate for the "
            "small model and batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="mae",
        method=MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2),
        encoder=scale.tiny_vit(image_size, positions="sincos", init="mae"),
        optim=_adamw(LR(base=1e-3, warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adamw(lr: LR) -> OptimConfig:
    return OptimConfig(name="adamw", lr=lr, weight_decay=constant(0.05), betas=(0.9, 0.95))
