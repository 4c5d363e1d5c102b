"""Recipes of MoCo v2 (arXiv 2003.04297)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant, cosine
from imprint.methods.moco_v2 import MoCoV2Config
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_800", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 200 epochs at batch 256, as in the paper."""
    return _paper(image_size, 200, "67.5")


def paper_800(image_size: int = 224) -> RunConfig:
    """ResNet-50, 800 epochs at batch 256."""
    return _paper(image_size, 800, "71.1")


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="moco_v2",
        method=MoCoV2Config(
            queue=4096,
            momentum=cosine(0.99, 1.0),
            hidden=512,
            blur=0.0 if image_size <= scale.TINY else 0.5,
        ),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2003.04297, scaled down; the public CIFAR-10 demonstration of MoCo (queue 4,096, m 0.99)",
            expected="docs/results.md",
            deviations="AdamW instead of SGD, a short queue and a fast key encoder (momentum 0.99 rising to 1): with "
            "few steps the paper's hardly moves; no blur up to 64 pixels.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="moco_v2",
        method=MoCoV2Config(queue=64, momentum=constant(0.99), hidden=32, projection=16, norm_groups=2, blur=0.0),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="sgd", lr=LR(base=0.03, warmup=Steps(2)), weight_decay=constant(1e-4)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(image_size: int, epochs: int, figure: str) -> RunConfig:
    return RunConfig(
        name="moco_v2",
        method=MoCoV2Config(),
        encoder=EncoderConfig(name="resnet50", image_size=image_size, arch=Arch(zero_init_last=False)),
        optim=OptimConfig(name="sgd", lr=LR(base=0.03), weight_decay=constant(1e-4), momentum=0.9),
        batch_size=256,
        length=Epochs(epochs),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2003.04297, Sec. 3; facebookresearch/moco (--mlp --moco-t 0.2 --aug-plus --cos)",
            expected=f"ImageNet-1k linear probe {figure} % top-1 (Tables 1 and 2)",
            deviations="empty places of the queue do not count as negatives in the first 256 steps, where the public "
            "code counts random vectors.",
        ),
    )
