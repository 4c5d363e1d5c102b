"""Recipes of W-MSE (arXiv 2007.06346)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.w_mse import WMSEConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_d4", "paper_stl10", "paper_stl10_d4", "small"]

Stem = Literal["imagenet", "cifar", "half"]

SOURCE = "arXiv 2007.06346, Sec. 4.1; htdt/self-supervised, README.md and cfg.py"


def paper(image_size: int = 32) -> RunConfig:
    """CIFAR-10 with two views: ResNet-18, 1000 epochs at batch 512, as in the paper."""
    return _paper(image_size, WMSEConfig(), rate=3e-3, batch=512, epochs=1000, expected="CIFAR-10 linear 91.55 %")


def paper_d4(image_size: int = 32) -> RunConfig:
    """CIFAR-10 with four views: batch 256, as in the paper."""
    return _paper(
        image_size, WMSEConfig(num_views=4), rate=3e-3, batch=256, epochs=1000, expected="CIFAR-10 linear 91.99 %"
    )


def paper_stl10(image_size: int = 64) -> RunConfig:
    """STL-10 with two views: embeddings of 128, sub-batches of 256, four partitions a step, 2000 epochs."""
    method = WMSEConfig(projection=128, w_size=256, w_iter=4)
    return _paper(image_size, method, rate=2e-3, batch=512, epochs=2000, expected="STL-10 linear 90.36 %", stem="half")


def paper_stl10_d4(image_size: int = 64) -> RunConfig:
    """STL-10 with four views: embeddings of 128, sub-batches of 256, batch 256, 2000 epochs."""
    method = WMSEConfig(num_views=4, projection=128, w_size=256)
    return _paper(image_size, method, rate=2e-3, batch=256, epochs=2000, expected="STL-10 linear 91.75 %", stem="half")


def _paper(
    image_size: int,
    method: WMSEConfig,
    *,
    rate: float,
    batch: int,
    epochs: int,
    expected: str,
    stem: Stem | None = None,
) -> RunConfig:
    return RunConfig(
        name="w_mse",
        method=method,
        encoder=EncoderConfig(name="resnet18", image_size=image_size, stem=stem or scale.stem(image_size)),
        optim=OptimConfig(
            name="adam",
            lr=LR(
                base=rate,
                rule="none",
                warmup=Steps(500),
                shape="milestones",
                # 50 and 25 epochs before the end; a run of another length should move them (--optim.lr.milestones).
                milestones=(Epochs(epochs - 50), Epochs(epochs - 25)),
                gamma=0.2,
            ),
            weight_decay=constant(1e-6),
        ),
        batch_size=batch,
        length=Epochs(epochs),
        probe_every=Epochs(20),
        provenance=Provenance(
            source=SOURCE,
            expected=f"{expected} top-1 (Table 1)",
            deviations="A stem of one 3x3 convolution of stride 2 in place of stride 1 and pooling." if stem else "",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW, two views: one GPU or a CPU, 1k to 50k images."""
    base = paper(image_size)
    return dataclasses.replace(
        base,
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source=SOURCE,
            expected="docs/results.md",
            deviations="AdamW with a cosine instead of Adam with two late steps, batch 128 (one sub-batch): these "
            "learn faster in short runs.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet with three views and two partitions: for tests."""
    return RunConfig(
        name="w_mse",
        method=WMSEConfig(num_views=3, hidden=32, projection=4, w_size=8, w_iter=2),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="adam", lr=LR(base=3e-3, rule="none", warmup=Steps(2)), weight_decay=constant(1e-6)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
