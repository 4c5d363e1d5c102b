"""Recipes of SimSiam (arXiv 2011.10566)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.simsiam import SimSiamConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_200", "paper_800", "paper_cifar10", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 100 epochs at batch 512, as in the paper's ablations and the public code."""
    return _paper(image_size, 100, "68.1")


def paper_200(image_size: int = 224) -> RunConfig:
    """ResNet-50, 200 epochs."""
    return _paper(image_size, 200, "70.0")


def paper_800(image_size: int = 224) -> RunConfig:
    """ResNet-50, 800 epochs."""
    return _paper(image_size, 800, "71.3")


def paper_cifar10(image_size: int = 32) -> RunConfig:
    """ResNet-18 with the CIFAR stem, 800 epochs at batch 512, as in the paper's appendix."""
    return RunConfig(
        name="simsiam",
        method=SimSiamConfig(layers=2, blur=0.0),
        encoder=EncoderConfig(name="resnet18", image_size=image_size, stem="cifar"),
        optim=OptimConfig(name="sgd", lr=LR(base=0.03), weight_decay=constant(5e-4), momentum=0.9),
        batch_size=512,
        length=Epochs(800),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2011.10566, App. D", expected="CIFAR-10 linear probe 91.8 % top-1 (App. D)"
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="simsiam",
        method=SimSiamConfig(projection=512, layers=2, predictor_hidden=128, blur=0.0 if tiny else 0.5),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2011.10566, App. D (CIFAR-10: 2-layer projector, no blur), scaled down",
            expected="docs/results.md",
            deviations="AdamW instead of SGD and narrower heads: both learn faster in short runs at a small batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="simsiam",
        method=SimSiamConfig(projection=64, layers=2, predictor_hidden=16, blur=0.0),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="sgd", lr=LR(base=0.05), weight_decay=constant(1e-4)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(image_size: int, epochs: int, figure: str) -> RunConfig:
    return RunConfig(
        name="simsiam",
        method=SimSiamConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(name="sgd", lr=LR(base=0.05), weight_decay=constant(1e-4), momentum=0.9),
        batch_size=512,
        length=Epochs(epochs),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2011.10566, Sec. 3; facebookresearch/simsiam, main_simsiam.py --fix-pred-lr",
            expected=f"ImageNet-1k linear probe {figure} % top-1 (Table 4; batch 256 there, 512 in the public code)",
        ),
    )
