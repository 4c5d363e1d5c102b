"""Recipes of BYOL (arXiv 2006.07733)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant, cosine
from imprint.methods.byol import BYOLConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_100", "paper_300", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 1000 epochs at batch 4096, as in the paper."""
    return _paper(image_size, 1000, lr=0.2, weight_decay=1.5e-6, momentum=0.996, expected="74.3 % top-1 (Table 1)")


def paper_300(image_size: int = 224) -> RunConfig:
    """ResNet-50, 300 epochs: the setting of the paper's ablations."""
    return _paper(image_size, 300, lr=0.3, weight_decay=1e-6, momentum=0.99, expected="72.5 % top-1 (Table 5a)")


def paper_100(image_size: int = 224) -> RunConfig:
    """ResNet-50, 100 epochs with the public code's preset."""
    return _paper(
        image_size,
        100,
        lr=0.45,
        weight_decay=1e-6,
        momentum=0.99,
        expected="none published by the authors; SimSiam's reproduction has 66.5 % at 100 epochs (arXiv 2011.10566, "
        "Table 4)",
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="byol",
        method=BYOLConfig(
            hidden=1024,
            projection=128,
            momentum=cosine(0.99, 1.0),
            crop_scale=(0.2, 1.0),
            blur=0.0 if tiny else 1.0,
            solarise=0.0 if tiny else 0.2,
        ),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2006.07733, Sec. 3.3 and App. B, scaled down",
            expected="docs/results.md",
            deviations="AdamW instead of LARS, narrower heads, crops of at least 20 % of the area and a faster target "
            "(momentum 0.99): all learn faster in short runs at a small batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="byol",
        method=BYOLConfig(
            hidden=64, projection=16, momentum=cosine(0.9, 1.0), crop_scale=(0.2, 1.0), blur=0.0, solarise=0.0
        ),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="lars", lr=LR(base=0.3, warmup=Steps(2)), weight_decay=constant(1.5e-6)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(
    image_size: int, epochs: int, *, lr: float, weight_decay: float, momentum: float, expected: str
) -> RunConfig:
    return RunConfig(
        name="byol",
        method=BYOLConfig(momentum=cosine(momentum, 1.0)),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="lars", lr=LR(base=lr, warmup=Epochs(10)), weight_decay=constant(weight_decay), momentum=0.9
        ),
        batch_size=4096,
        length=Epochs(epochs),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2006.07733, Sec. 3.3 and App. B; google-deepmind/deepmind-research, byol/configs/byol.py",
            expected=f"ImageNet-1k linear probe {expected}",
        ),
    )
