"""Recipes of colorization (arXiv 1603.08511)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.colorization import ColorizationConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]


def paper(image_size: int = 176) -> RunConfig:
    """ResNet-50 instead of the paper's VGG-like network, Adam, batch 40, 450,000 iterations."""
    return RunConfig(
        name="colorization",
        method=ColorizationConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="adam",
            # 3e-5, then 1e-5 at 200,000 and 3e-6 at 375,000.
            lr=LR(
                base=3e-5,
                per=40,
                rule="none",
                shape="milestones",
                milestones=(Steps(200_000), Steps(375_000)),
                gamma=10**-0.5,
            ),
            betas=(0.9, 0.99),
            weight_decay=constant(1e-3),
        ),
        batch_size=40,
        length=Steps(450_000),
        checkpoint_every=Steps(5_000),
        probe_every=Steps(25_000),
        provenance=Provenance(
            source="arXiv 1603.08511, Sec. 2 and 3.1 (rates, length); richzhang/colorization (crops, batch, decay)",
            expected="ImageNet-1k linear probe of a ResNet-50 40.1 % top-1 (arXiv 1905.01235's, in VISSL's model zoo)",
            deviations="a ResNet-50, whose maps of all stages the head reads, instead of a dilated VGG-like network; "
            "targets share 5 bins as the paper says, not the 10 of the public code, whose solver file has another "
            "schedule (a tenth of the rate after 225,000 of 500,000 steps); the distribution of colours is that of the "
            "user's images.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 64, AdamW: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="colorization",
        method=ColorizationConfig(width=64, layers=1, crop_scale=(0.2, 1.0)),
        encoder=scale.resnet18(image_size),
        optim=OptimConfig(
            name="adamw", lr=LR(base=2e-3, per=128, rule="sqrt", warmup=Steps(50)), weight_decay=constant(1e-4)
        ),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 1603.08511, Sec. 2, scaled down",
            expected="docs/results.md",
            deviations="a narrow head, AdamW at a higher rate, crops of 20 % to 100 % of the area.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="colorization",
        method=ColorizationConfig(width=16, layers=1, crop_scale=(0.2, 1.0)),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, per=16, warmup=Steps(2)), weight_decay=constant(1e-4)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
