"""Recipes of RCDM (arXiv 2112.09164): name the encoder to look into by --encoder, or its run by --start."""

from __future__ import annotations

import dataclasses

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.rcdm import RCDMConfig
from imprint.recipes import scale, simclr
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small", "small_projector", "small_simclr"]

SOURCE = "arXiv 2112.09164; facebookresearch/RCDM, README (MODEL_FLAGS_128, TRAIN_FLAGS, 32 GPUs)"


def paper(image_size: int = 224) -> RunConfig:
    """Images of 128 pixels told a ResNet-50's 2,048 values, batch 256, as in the public code."""
    return RunConfig(
        name="rcdm",
        method=RCDMConfig(size=_fitting(min(128, image_size), 16)),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-4, rule="none", shape="constant")),
        batch_size=256,
        length=Steps(300_000),
        checkpoint_every=Steps(10_000),
        probe_every=Steps(50_000),
        provenance=Provenance(
            source=SOURCE,
            expected="samples of one backbone representation share all but pose and background, those of a projector "
            "little but the class; the encoder stays as it was",
            deviations="length: the public script has none, it goes on until it is stopped; attention heads of "
            "64 channels (the public code has 4 heads); condition and target are one centre crop, resized bilinearly.",
        ),
    )


def small(image_size: int = 32) -> RunConfig:
    """A narrow U-Net at up to 64 pixels, batch 64, told the vector of --encoder (or of the run named by --start)."""
    size = _fitting(min(image_size, 64), 8)
    return RunConfig(
        name="rcdm",
        method=RCDMConfig(
            size=size,
            width=32,
            multipliers=(1, 2, 4),
            blocks=1,
            attention=(8,),
            head_width=32,
            groups=8,
            residual_resampling=False,
            patch=2,
            prediction="velocity",
            schedule="cosine",
            learned_variance=False,
            momentum=0.99,
            sampler="ddim",
            steps=50,
        ),
        encoder=scale.resnet18(image_size),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=2e-3, per=64, rule="sqrt", warmup=Steps(50)),
            weight_decay=constant(1e-4),
            clip=1.0,
        ),
        batch_size=64,
        length=Epochs(50),
        probe_every=Epochs(25),
        provenance=Provenance(
            source=SOURCE,
            expected="docs/results.md",
            deviations="a narrow U-Net of fewer levels over squares of 2 x 2 pixels, velocity in place of noise, "
            "cosine noise without learned variances, a higher rate that falls, a faster average: runs are short; "
            "samples by DDIM, so that the first noise is all that they share.",
        ),
    )


def small_projector(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """SimCLR on the same images first, then `small` told what its projector says."""
    first, second = small_simclr(image_size)
    assert isinstance(second.method, RCDMConfig)
    return first, dataclasses.replace(second, method=dataclasses.replace(second.method, condition="projector"))


def small_simclr(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """SimCLR on the same images first, then `small` told what its backbone says."""
    first, second = simclr.small(image_size), small(image_size)
    first = dataclasses.replace(first, stage="encoder", share=0.5)
    return first, dataclasses.replace(second, stage="decoder", start="../stage-1", share=0.5)


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a tiny U-Net: for tests."""
    return RunConfig(
        name="rcdm",
        method=RCDMConfig(
            size=_fitting(min(image_size, 32), 4) // 2,
            width=8,
            multipliers=(1, 2),
            blocks=1,
            attention=(),
            head_width=8,
            groups=4,
            levels=50,
            momentum=0.9,
            steps=2,
        ),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, per=16, warmup=Steps(2)), weight_decay=constant(1e-4)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _fitting(size: int, step: int) -> int:
    """Return the largest multiple of `step` up to `size`: a U-Net halves the sides."""
    return max(step, size // step * step)
