"""Recipes of context encoders (arXiv 1604.07379)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.methods.context_encoder import ContextEncoderConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_random", "small"]


def paper(image_size: int = 128) -> RunConfig:
    """ResNet-50, centre hole, joint loss, 500 epochs at batch 64, as the public code trains."""
    return RunConfig(
        name="context_encoder",
        method=ContextEncoderConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=_adam(LR(base=2e-4, rule="none", shape="constant")),
        batch_size=64,
        length=Epochs(500),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 1604.07379; pathak22/context-encoder, README (the command for the centre) and train.lua",
            expected="PASCAL VOC 2007 classification 56.5 % (AlexNet, Table 2)",
            deviations="a ResNet-50 in place of AlexNet; crops of 79 % of the area, not 128 of 350 pixels.",
        ),
    )


def paper_random(image_size: int = 128) -> RunConfig:
    """ResNet-50, random shapes, squared error in the hole alone: the paper's setting for features."""
    return RunConfig(
        name="context_encoder",
        method=ContextEncoderConfig(
            region="random", context_weight=0.0, reconstruction_weight=1.0, adversarial_weight=0.0
        ),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=_adam(LR(base=2e-4, rule="none", shape="constant")),
        batch_size=64,
        length=Epochs(500),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 1604.07379, Sec. 3.3 and Eq. 1; pathak22/context-encoder, train_random.lua (shapes)",
            expected="PASCAL VOC 2007 classification 56.5 % (AlexNet, Table 2)",
            deviations="a ResNet-50 in place of AlexNet, shapes of the public code in place of cut-out objects.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, random shapes, batch 64: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="context_encoder",
        method=ContextEncoderConfig(region="random", width=32, discriminator_width=32, crop_scale=(0.5, 1.0)),
        encoder=scale.resnet18(image_size),
        optim=_adam(LR(base=2e-4, per=64, rule="sqrt", warmup=Epochs(0.5))),
        batch_size=64,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 1604.07379, scaled down",
            expected="docs/results.md",
            deviations="a narrow decoder and discriminator, crops of different sizes, a cosine.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="context_encoder",
        method=ContextEncoderConfig(region="random", width=8, discriminator_width=8),
        encoder=scale.narrow_resnet(image_size),
        optim=_adam(LR(base=2e-4, rule="none", warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adam(lr: LR) -> OptimConfig:
    return OptimConfig(name="adam", lr=lr, betas=(0.5, 0.999))
