"""Recipes of SwAV (arXiv 2006.09882)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.swav import SwAVConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_200", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """ResNet-50, 2 x 224 + 6 x 96 crops, 800 epochs at batch 4096, as in the paper."""
    return RunConfig(
        name="swav",
        method=SwAVConfig(),
        encoder=_resnet50(image_size),
        # Warm-up from 0.3 to 4.8 in 10 epochs; the last warm-up step already has 4.8.
        optim=_larc(LR(base=4.8, per=4096, end=1e-3, warmup=Epochs(10), warmup_from=1 / 16, warmup_reaches_peak=True)),
        batch_size=4096,
        length=Epochs(800),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2006.09882, Sec. 4.1 and App. A.1; facebookresearch/swav, scripts/swav_800ep_pretrain.sh",
            expected="ImageNet-1k linear probe 75.3 % top-1 (Fig. 2); 64 V100, about 50 hours",
            deviations="BatchNorm statistics span all processes; the public run takes them over groups of 8 of its 64.",
        ),
    )


def paper_200(image_size: int = 224) -> RunConfig:
    """ResNet-50, batch 256 with a queue of 3,840, 200 epochs."""
    return RunConfig(
        name="swav",
        method=SwAVConfig(queue=3840),
        encoder=_resnet50(image_size),
        optim=_larc(LR(base=0.6, end=1e-3)),
        batch_size=256,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2006.09882, Sec. 4.3 (small batches); facebookresearch/swav, "
            "scripts/swav_200ep_bs256_pretrain.sh",
            expected="ImageNet-1k linear probe 72.0 % top-1 (Table 3; the released weights 72.7 %); 4 V100",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW, two crops: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="swav",
        method=SwAVConfig(
            hidden=512,
            prototypes=300,
            queue=1024,
            queue_from=Epochs(2),
            freeze_prototypes=Steps(100),
            global_scale=(0.2, 1.0),
            local_crops=0,
            colour=0.5 if tiny else 1.0,
            blur=0.0 if tiny else 0.5,
        ),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2006.09882, scaled down",
            expected="docs/results.md",
            deviations="AdamW instead of LARC, fewer prototypes that are freed after 100 steps, a shorter queue that "
            "starts early, and two crops of at least 20 % of the area without small ones.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet, with queue, frozen prototypes and small crops: for tests."""
    return RunConfig(
        name="swav",
        method=SwAVConfig(
            hidden=32,
            projection=16,
            prototypes=24,
            queue=32,
            queue_from=Steps(1),
            freeze_prototypes=Steps(2),
            global_scale=(0.2, 1.0),
            local_crops=2,
            local_size=16,
            colour=0.5,
            blur=0.0,
        ),
        encoder=scale.narrow_resnet(image_size),
        optim=_larc(LR(base=0.6, end=1e-3, warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _resnet50(image_size: int) -> EncoderConfig:
    return EncoderConfig(name="resnet50", image_size=image_size, arch=Arch(zero_init_last=False))


def _larc(lr: LR) -> OptimConfig:
    """LARC without clipping around SGD; biases and norms are adapted and decayed, too (apex)."""
    return OptimConfig(
        name="lars", lars="larc", adapt_all=True, lr=lr, weight_decay=constant(1e-6), momentum=0.9, trust=1e-3
    )
