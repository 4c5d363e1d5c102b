"""Recipes of RotNet (arXiv 1803.07728)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.rotation import RotationConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_35ep", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 105 epochs at batch 256: the re-run on a ResNet that later papers compare with."""
    return RunConfig(
        name="rotation",
        method=RotationConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=_sgd(LR(base=0.1, shape="milestones", milestones=(Epochs(30), Epochs(60), Epochs(90), Epochs(100)))),
        batch_size=256,
        length=Epochs(105),
        probe_every=Epochs(5),
        provenance=Provenance(
            source="arXiv 1803.07728; facebookresearch/vissl, rotnet_8gpu_resnet.yaml",
            expected="ImageNet-1k linear probe 48.2 % top-1 (VISSL's model zoo)",
            deviations="all four rotations of an image in every step, as in the paper and its code; the re-run drew "
            "one, before the crop.",
        ),
    )


def paper_35ep(image_size: int = 224) -> RunConfig:
    """ResNet-50, 35 epochs with warm-up, as in the study of architectures for pretext tasks."""
    return RunConfig(
        name="rotation",
        method=RotationConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=_sgd(LR(base=0.1, warmup=Epochs(5), shape="milestones", milestones=(Epochs(15), Epochs(25)))),
        batch_size=64,
        length=Epochs(35),
        probe_every=Epochs(5),
        provenance=Provenance(
            source="arXiv 1901.09005, Sec. 4.1 and 4.2; google/revisiting-self-supervised, config/rotation",
            expected="the study reports wider networks; its ResNet-50 grows from 4 to 16 times the width",
            deviations="a ResNet-50 of plain width, and crops of 8 to 100 % instead of the Inception preprocessing "
            "with its colour distortion.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 64 (256 inputs), AdamW: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="rotation",
        method=RotationConfig(crop_scale=(0.5, 1.0)),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(5),
        provenance=Provenance(
            source="arXiv 1803.07728, Sec. 3.1 (CIFAR-10: shifts by 4 pixels and flips), scaled down",
            expected="docs/results.md",
            deviations="AdamW instead of SGD: it learns faster in short runs.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="rotation",
        method=RotationConfig(crop_scale=(0.5, 1.0)),
        encoder=scale.narrow_resnet(image_size),
        optim=_sgd(LR(base=0.1, warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _sgd(lr: LR) -> OptimConfig:
    return OptimConfig(name="sgd", lr=lr, weight_decay=constant(1e-4), momentum=0.9)
