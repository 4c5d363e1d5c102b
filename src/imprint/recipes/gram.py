"""Recipes of Gram anchoring (DINOv3, arXiv 2508.10104, Sec. 4)."""

from __future__ import annotations

import dataclasses

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import Schedule, constant, cosine
from imprint.methods.dinov2 import DINOv2Config
from imprint.methods.gram import GramConfig
from imprint.recipes import dinov2
from imprint.train.config import LR, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]

SOURCE = "arXiv 2508.10104, Sec. 4; facebookresearch/dinov3, configs/train/dinov3_vit7b16_gram_anchor.yaml"


def paper(image_size: int = 252) -> tuple[RunConfig, RunConfig]:
    """ViT-L/14 by DINOv2, then 30,000 steps held to a Gram teacher at twice the resolution."""
    first = dinov2.paper_vit_large(image_size)
    stage = following(
        first,
        length=Steps(30_000),
        refresh=Steps(10_000),
        gram_size=2 * image_size,
        gram_weight=Schedule(start=2.0, shape="constant", warmup=Steps(1000), warmup_from=0.0),
        momentum=constant(0.999),
        teacher_temp=constant(0.07),
    )
    stage = dataclasses.replace(
        stage,
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=3e-5, per=1024, rule="sqrt", shape="constant", warmup=Steps(1000)),
            weight_decay=constant(0.04),
            betas=(0.9, 0.99),
            layer_decay=0.98,
            clip=30.0,
        ),
        checkpoint_every=Steps(1000),
        probe_every=Steps(5000),
        share=0.05,
    )
    provenance = dataclasses.replace(first.provenance, source=f"{SOURCE}, first stage as {first.provenance.source}")
    return dataclasses.replace(first, stage="pretrain", provenance=provenance), stage


def small(image_size: int = 96) -> tuple[RunConfig, RunConfig]:
    """DINOv2's small recipe, then a shorter stage with the anchor."""
    first = dinov2.small(image_size)
    stage = following(
        first,
        length=Epochs(30),
        refresh=Epochs(10),
        gram_size=None,
        gram_weight=constant(2.0),
        momentum=cosine(0.996, 1.0),
        teacher_temp=constant(0.04),
    )
    lr = dataclasses.replace(first.optim.lr, base=first.optim.lr.base / 4)
    stage = dataclasses.replace(stage, optim=dataclasses.replace(first.optim, lr=lr), share=0.3)
    return dataclasses.replace(first, stage="pretrain", share=0.7), stage


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT from fresh weights, its anchor fed sharper crops: for tests."""
    stage = following(
        dinov2.debug(image_size),
        length=Steps(8),
        refresh=Steps(3),
        gram_size=2 * image_size,
        gram_weight=constant(2.0),
        momentum=constant(0.9),
        teacher_temp=constant(0.07),
    )
    return dataclasses.replace(stage, stage="", start=None)


def following(
    first: RunConfig,
    *,
    length: Steps | Epochs,
    refresh: Steps | Epochs,
    gram_size: int | None,
    gram_weight: Schedule,
    momentum: Schedule,
    teacher_temp: Schedule,
) -> RunConfig:
    """Return the stage that goes on from a run of DINOv2 with the settings of its objective."""
    assert isinstance(first.method, DINOv2Config)
    names = {f.name for f in dataclasses.fields(GramConfig)}
    carried = {f.name: getattr(first.method, f.name) for f in dataclasses.fields(first.method) if f.name in names}
    changed = {
        "gram_weight": gram_weight,
        "gram_size": gram_size,
        "refresh": refresh,
        "momentum": momentum,
        "teacher_temp": teacher_temp,
        "freeze_prototypes": Steps(0),
    }
    return dataclasses.replace(
        first,
        name="gram",
        stage="gram",
        start="../stage-1",
        method=GramConfig(**{**carried, **changed}),
        length=length,
        provenance=Provenance(
            source=SOURCE,
            expected="dense features recover within 10,000 steps (Fig. 8); no figure for a model of this size",
            deviations="DINOv2's schedules, heads and crops before it, not DINOv3's constant ones.",
        ),
    )
