"""Recipes of Barlow Twins (arXiv 2103.03230)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.barlow_twins import BarlowTwinsConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 1000 epochs at batch 2048, as in the paper."""
    return RunConfig(
        name="barlow_twins",
        method=BarlowTwinsConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="lars",
            lars="barlow",
            lr=LR(base=0.2, end=1e-3, warmup=Epochs(10)),
            weight_decay=constant(1e-6),
            momentum=0.9,
        ),
        batch_size=2048,
        length=Epochs(1000),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2103.03230, Sec. 2.2; facebookresearch/barlowtwins, main.py",
            expected="ImageNet-1k linear probe 73.2 % top-1 (Table 1)",
            deviations="Weight decay 1e-6 as in the public code (the paper's text says 1.5e-6).",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW, projector of 1024: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="barlow_twins",
        method=BarlowTwinsConfig(
            projector=(1024, 1024, 1024),
            bias_lr=1.0,
            crop_scale=(0.2, 1.0),
            colour=1.0,
            blur=0.0 if tiny else 1.0,
        ),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2103.03230, Sec. 2.2; Fig. 2 (small batches lose little) and Fig. 4 (narrower projectors)",
            expected="docs/results.md",
            deviations="AdamW with one rate instead of LARS with two, a projector of 1024, crops of at least 20 % of "
            "the area: these learn faster in short runs at a small batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="barlow_twins",
        method=BarlowTwinsConfig(projector=(64, 64, 64), blur=0.0),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(
            name="lars", lars="barlow", lr=LR(base=0.2, end=1e-3, warmup=Steps(2)), weight_decay=constant(1e-6)
        ),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
