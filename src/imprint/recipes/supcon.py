"""Recipes of SupCon (arXiv 2004.11362)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.supcon import SupConConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_cifar10", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 350 epochs at batch 6144, LARS, as in the authors' ImageNet script."""
    return RunConfig(
        name="supcon",
        method=SupConConfig(base_temperature=1.0, crop_scale=(0.08, 1.0), blur=0.5),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="lars", lars="simclr", lr=LR(base=0.4, warmup=Epochs(10)), weight_decay=constant(1e-3), momentum=0.9
        ),
        batch_size=6144,
        length=Epochs(350),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2004.11362, Sec. 4; google-research/supcon, scripts/supcon_imagenet_resnet50.sh",
            expected="ImageNet-1k classifier on the frozen encoder 78.7 % top-1 (Table 2)",
            deviations="MoCo v2's colours and blur instead of AutoAugment.",
        ),
    )


def paper_cifar10(image_size: int = 32) -> RunConfig:
    """ResNet-50 with the CIFAR stem, 1000 epochs at batch 1024, SGD, as in HobbitLong/SupContrast."""
    return RunConfig(
        name="supcon",
        method=SupConConfig(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size, stem="cifar", arch=Arch(zero_init_last=False)),
        optim=OptimConfig(
            name="sgd",
            lr=LR(base=0.5, rule="none", end=1e-3, warmup=Epochs(10), warmup_from=0.02),
            weight_decay=constant(1e-4),
            momentum=0.9,
            adapt_all=True,  # SGD over model.parameters(): biases and norms decay, too
        ),
        batch_size=1024,
        length=Epochs(1000),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="HobbitLong/SupContrast, README (--learning_rate 0.5 --temp 0.1 --cosine) and main_supcon.py",
            expected="CIFAR-10 classifier on the frozen encoder 96.0 % (README)",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW: one GPU or a CPU, 1k to 50k labelled images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="supcon",
        method=SupConConfig(blur=0.0 if tiny else 0.5),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="HobbitLong/SupContrast (views, temperature 0.1), scaled down",
            expected="docs/results.md",
            deviations="AdamW instead of SGD: it learns faster in short runs at a small batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="supcon",
        method=SupConConfig(projection=16),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="sgd", lr=LR(base=0.5, warmup=Steps(2)), weight_decay=constant(1e-4)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
