"""Recipes of SplitMask (arXiv 2112.10740): pretraining on the images of the task itself."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.splitmask import SplitMaskConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_vit_base", "small"]

_UNSAID = "no code is public: rates, decay and batch are BEiT's (arXiv 2106.08254, App. H), whose settings it adopts."


def paper(image_size: int = 224) -> RunConfig:
    """ViT-S/16, random-projection words, 300 epochs of ImageNet or as many steps of a small set."""
    return _paper("vit_small_patch16_224", image_size)


def paper_vit_base(image_size: int = 224) -> RunConfig:
    """ViT-B/16, random-projection words, 300 epochs of ImageNet or as many steps of a small set."""
    return _paper("vit_base_patch16_224", image_size)


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches, 1,024 words, batch 64: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="splitmask",
        method=SplitMaskConfig(vocabulary=1024, decoder_depth=1),
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=image_size,
            patch_size=scale.patch(image_size),
            positions="sincos",
        ),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, per=64, rule="sqrt", floor=1e-6, warmup=Steps(100)),
            weight_decay=constant(0.05),
        ),
        batch_size=64,
        length=Epochs(400),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2112.10740, Sec. 4, scaled down",
            expected="docs/results.md",
            deviations="fewer visual words, a decoder of one block and a higher rate for the small model and batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="splitmask",
        method=SplitMaskConfig(vocabulary=32, decoder_heads=2),
        encoder=scale.tiny_vit(image_size),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, per=16, warmup=Steps(2)), weight_decay=constant(0.05)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(name: str, image_size: int) -> RunConfig:
    return RunConfig(
        name="splitmask",
        method=SplitMaskConfig(),
        encoder=EncoderConfig(name=name, image_size=image_size, drop_path=0.1),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1.5e-3, per=2048, floor=1e-5, warmup=Epochs(10)),
            weight_decay=constant(0.05),
            betas=(0.9, 0.999),
            clip=3.0,
        ),
        batch_size=2048,
        length=Epochs(300),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2112.10740, Sec. 4 and 5 (small sets: as many steps as 300 epochs of ImageNet take)",
            expected="fine-tuned on the task whose images it was trained on; no probe is reported",
            deviations=_UNSAID,
        ),
    )
