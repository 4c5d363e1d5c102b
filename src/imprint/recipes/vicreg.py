"""Recipes of VICReg (arXiv 2105.04906)."""

from __future__ import annotations

import dataclasses

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.vicreg import VICRegConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small", "two_inputs"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 1000 epochs at batch 2048, as in the paper."""
    return RunConfig(
        name="vicreg",
        method=VICRegConfig(),
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
            source="arXiv 2105.04906, Sec. 4.2; facebookresearch/vicreg, main_vicreg.py",
            expected="ImageNet-1k linear probe 73.2 % top-1 (Table 1)",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW, expander of 1024: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="vicreg",
        method=VICRegConfig(expander=(1024, 1024, 1024), crop_scale=(0.2, 1.0), blur=0.0 if tiny else 1.0),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2105.04906, Sec. 4.2",
            expected="docs/results.md",
            deviations="AdamW instead of LARS, an expander of 1024, crops of at least 20 % of the area: these learn "
            "faster in short runs at a small batch.",
        ),
    )


def two_inputs(image_size: int = 96) -> RunConfig:
    """The small recipe for images of four channels: RGB in the first branch, depth or near infrared in the second."""
    base = small(image_size)
    assert isinstance(base.method, VICRegConfig)
    return dataclasses.replace(
        base,
        method=dataclasses.replace(base.method, second="same", second_channels=(3,)),
        encoder=dataclasses.replace(base.encoder, channels=3),
        provenance=dataclasses.replace(
            base.provenance,
            source="arXiv 2105.04906, Sec. 4.1 and 6 (branches that share neither weights nor kind of input)",
            expected="",
            deviations=base.provenance.deviations + " Colours are not mixed across channels (hue, saturation and grey "
            "need RGB alone), and --data.mean and --data.std should be given for all four channels.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="vicreg",
        method=VICRegConfig(expander=(64, 64, 64), blur=0.0),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(
            name="lars", lars="barlow", lr=LR(base=0.2, end=1e-3, warmup=Steps(2)), weight_decay=constant(1e-6)
        ),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
