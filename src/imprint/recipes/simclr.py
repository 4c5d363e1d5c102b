"""Recipes of SimCLR (arXiv 2002.05709)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.simclr import SimCLRConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 1000 epochs at batch 4096, as in the paper."""
    return RunConfig(
        name="simclr",
        method=SimCLRConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="lars", lars="simclr", lr=LR(base=0.3, warmup=Epochs(10)), weight_decay=constant(1e-6), momentum=0.9
        ),
        batch_size=4096,
        length=Epochs(1000),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2002.05709, Sec. 2.1, Sec. 5.1 and App. B; google-research/simclr",
            expected="ImageNet-1k linear probe 69.3 % top-1 (Table 6)",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="simclr",
        method=SimCLRConfig(
            temperature=0.5 if tiny else 0.2,
            colour=0.5 if tiny else 1.0,
            blur=0.0 if tiny else 0.5,
            crop_scale=(0.2, 1.0),
        ),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2002.05709, App. B.9 (CIFAR-10: temperature 0.5, colour strength 0.5, no blur)",
            expected="docs/results.md",
            deviations="AdamW instead of LARS and crops of at least 20 % of the area: both learn faster in short runs "
            "at a small batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="simclr",
        method=SimCLRConfig(temperature=0.5, colour=0.5, blur=0.0, projection=16),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="lars", lars="simclr", lr=LR(base=0.3, warmup=Steps(2)), weight_decay=constant(1e-6)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
