"""Recipes of NNCLR (arXiv 2104.14548)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.nnclr import NNCLRConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 1000 epochs at batch 4096, as in the paper."""
    return RunConfig(
        name="nnclr",
        method=NNCLRConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(name="lars", lr=LR(base=0.3, warmup=Epochs(10)), weight_decay=constant(1e-6), momentum=0.9),
        batch_size=4096,
        length=Epochs(1000),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2104.14548, Sec. 4.1",
            expected="ImageNet-1k linear probe 75.4 % top-1 (Table 1)",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="nnclr",
        method=NNCLRConfig(
            temperature=0.2,
            hidden=512,
            projection=128,
            predictor_hidden=512,
            queue=4096,
            crop_scale=(0.2, 1.0),
            colour=0.5 if tiny else 1.0,
            blur=0.0 if tiny else 0.5,
        ),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2104.14548, Sec. 4.1, scaled down",
            expected="docs/results.md",
            deviations="AdamW instead of LARS, narrower heads, a support set of 4,096 (one as large as the data would "
            "hold the image itself, and old embeddings), temperature 0.2 and crops of at least 20 % of the area.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="nnclr",
        method=NNCLRConfig(
            hidden=32, projection=16, predictor_hidden=32, queue=64, crop_scale=(0.2, 1.0), colour=0.5, blur=0.0
        ),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="lars", lr=LR(base=0.3, warmup=Steps(2)), weight_decay=constant(1e-6)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
