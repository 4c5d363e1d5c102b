"""Recipes of SEER (arXiv 2103.01988): one pass over a stream of random images."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.seer import SEERConfig
from imprint.recipes import scale
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_128gf", "paper_32gf", "paper_64gf", "paper_8gf", "small"]

SOURCE = (
    "arXiv 2103.01988, Sec. 3.1; facebookresearch/vissl, swav_8node_resnet.yaml with regnet256Gf_1, "
    "d10444_d8192_d8192_d256_proto16k and multicrop_6crop_2x160_4x96"
)
FINE_TUNED = "ImageNet-1k fine-tuned at 384 pixels, public weights"


def paper(image_size: int = 160) -> RunConfig:
    """RegNetY-256GF (1.3 billion weights), one billion images once, at batch 8192."""
    return _paper(
        image_size,
        "regnety_2560",
        "ImageNet-1k fine-tuned 84.2 % (Table 1); 122,000 steps, 512 V100 of 32 GB, 8 days",
    )


def paper_128gf(image_size: int = 160) -> RunConfig:
    """RegNetY-128GF (0.7 billion weights), otherwise as the paper's."""
    return _paper(image_size, "regnety_1280", f"{FINE_TUNED}: 84.5 %")


def paper_64gf(image_size: int = 160) -> RunConfig:
    """RegNetY-64GF (0.25 billion weights), otherwise as the paper's."""
    return _paper(image_size, "regnety_640", f"{FINE_TUNED}: 84.0 %")


def paper_32gf(image_size: int = 160) -> RunConfig:
    """RegNetY-32GF (0.15 billion weights), otherwise as the paper's."""
    return _paper(image_size, "regnety_320", f"{FINE_TUNED}: 83.4 %")


def paper_8gf(image_size: int = 160) -> RunConfig:
    """RegNetY-8GF (the smallest of the paper's family), otherwise as the paper's."""
    return _paper(image_size, "regnety_080", "a point of the paper's scaling study (Fig. 3); no weights are public")


def small(image_size: int = 96) -> RunConfig:
    """RegNetY-400MF, batch 128, AdamW, one pass: one GPU or a CPU, 50k images or more, shards or a folder."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="seer",
        method=SEERConfig(
            hidden=512,
            projection=128,
            prototypes=300,
            freeze_prototypes=Steps(30),
            global_scale=(0.2, 1.0),
            local_crops=0,
            colour=0.5 if tiny else 1.0,
            blur=0.0 if tiny else 0.5,
        ),
        encoder=EncoderConfig(name="resnet18", image_size=image_size, stem="cifar")
        if tiny
        else EncoderConfig(name="regnety_004", image_size=image_size, arch=Arch(zero_init_last=False)),
        data=DataConfig(stream="auto"),
        optim=OptimConfig(
            name="adamw", lr=LR(base=2e-3, per=128, rule="sqrt", warmup=Epochs(0.05)), weight_decay=constant(1e-4)
        ),
        batch_size=128,
        length=Epochs(1),
        probe_every=Epochs(0.25),
        provenance=Provenance(
            source="arXiv 2103.01988, scaled down",
            expected="docs/results.md",
            deviations="AdamW instead of LARS, a narrower head, fewer prototypes that are freed after 30 steps, and "
            "two crops of at least 20 % of the area without small ones. Images of up to 64 pixels get a ResNet-18: a "
            "RegNetY reduces 32-fold and leaves them one patch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a RegNetY-200MF, with frozen prototypes, small crops and recomputed activations: for tests."""
    return RunConfig(
        name="seer",
        method=SEERConfig(
            hidden=32,
            projection=16,
            prototypes=24,
            freeze_prototypes=Steps(2),
            global_scale=(0.2, 1.0),
            local_crops=2,
            local_size=32,
            colour=0.5,
            blur=0.0,
        ),
        encoder=EncoderConfig(name="regnety_002", image_size=image_size),
        data=DataConfig(stream="auto", window=32),
        optim=_larc(LR(base=0.3, end=1e-3, warmup=Steps(2))),
        checkpoint_activations=True,
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(image_size: int, encoder: str, expected: str) -> RunConfig:
    return RunConfig(
        name="seer",
        method=SEERConfig(),
        encoder=EncoderConfig(name=encoder, image_size=image_size, arch=Arch(zero_init_last=False)),
        data=DataConfig(stream="auto", window=65_536),
        # 0.3 * 8192 / 256 = 9.6 after a warm-up from 0.15; then a cosine to 0.0096.
        optim=_larc(LR(base=0.3, end=1e-3, warmup=Steps(8000), warmup_from=0.15 / 9.6)),
        checkpoint_activations=True,
        shard="optimizer",
        batch_size=8192,
        length=Steps(122_000),
        checkpoint_every=Steps(1000),
        probe_every=Steps(5000),
        provenance=Provenance(
            source=SOURCE,
            expected=expected,
            deviations="BatchNorm statistics span all processes; the paper takes them over groups of 64 of its 512.",
        ),
    )


def _larc(lr: LR) -> OptimConfig:
    """LARC without clipping around SGD; biases and norms are adapted and decayed, too (apex)."""
    return OptimConfig(
        name="lars", lars="larc", adapt_all=True, lr=lr, weight_decay=constant(1e-5), momentum=0.9, trust=1e-3
    )
