"""Recipes of frame-order verification (Shuffle and Learn, arXiv 1603.08561)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.frame_order import FrameOrderConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50 in place of the paper's CaffeNet, 100,000 steps at batch 128."""
    return RunConfig(
        name="frame_order",
        method=FrameOrderConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="sgd",
            lr=LR(base=1e-3, rule="none", shape="milestones", milestones=(Steps(80_000),)),
            weight_decay=constant(5e-4),
            momentum=0.9,
        ),
        batch_size=128,
        length=Steps(100_000),
        checkpoint_every=Steps(2_000),
        probe_every=Steps(5_000),
        provenance=Provenance(
            source="arXiv 1603.08561; imisra/shuffle-tuple, networks/tuple_solver.prototxt and README (figures)",
            expected="UCF101 fine-tuned 50.2 % and HMDB51 18.1 % (mean over splits) with CaffeNet",
            deviations="ResNet-50 and its pooled features stand for CaffeNet and fc7 (two layers of 4,096 with batch "
            "norm and dropout); tuples are drawn anew each epoch instead of 900,000 once; motion is the difference of "
            "frames instead of optical flow.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 32, AdamW, windows of a second: one GPU or a CPU, a few videos."""
    return RunConfig(
        name="frame_order",
        method=FrameOrderConfig(tau_max=12, tau_min=4, negatives=0.5, fusion=256, crop_scale=(0.5, 1.0)),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=32,
        length=Epochs(400),
        probe_every=Epochs(50),
        provenance=Provenance(
            source="arXiv 1603.08561, scaled down",
            expected="docs/results.md",
            deviations="shorter windows for short videos; half of the tuples out of order; a hidden layer over the "
            "three features, because a linear classifier of features side by side cannot compare frames; AdamW.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="frame_order",
        method=FrameOrderConfig(tau_max=2, tau_min=1, fusion=16),
        encoder=scale.narrow_resnet(image_size),
        optim=scale.adamw(),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
