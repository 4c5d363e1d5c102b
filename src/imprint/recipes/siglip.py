"""Recipes of SigLIP (arXiv 2303.15343)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.texts import TextConfig
from imprint.methods.siglip import SigLIPConfig
from imprint.recipes import scale
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]

SOURCE = "arXiv 2303.15343, Sec. 3 and 4; google-research/big_vision, trainers/proj/image_text/siglip.py"
HALF = (0.5, 0.5, 0.5)


def paper(image_size: int = 224) -> RunConfig:
    """ViT-B/16 with attention pooling and a B-sized text tower, batch 32,768, from scratch."""
    return RunConfig(
        name="siglip",
        method=SigLIPConfig(),
        encoder=EncoderConfig(name="vit_base_patch16_siglip_224", image_size=image_size),
        data=DataConfig(
            mean=HALF, std=HALF, text=TextConfig(kind="unigram", vocabulary=32_000, lowercase=True, held_out=0.0005)
        ),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, rule="none", warmup=Steps(20_000)),
            weight_decay=constant(1e-4),
            betas=(0.9, 0.95),
            clip=1.0,
        ),
        batch_size=32_768,
        length=Steps(300_000),
        probe_every=Steps(5_000),
        provenance=Provenance(
            source=SOURCE,
            expected="ImageNet-1k zero-shot top-1 73.4 % on WebLI, which is not public (5 days of 32 TPUv4)",
            deviations="AdamW instead of ScalingViT-Adafactor with the paper's second beta; a tokenizer learned on the "
            "run's own captions instead of C4's; warm-up and length are those of about 9 billion pairs, which the "
            "published code leaves to its user.",
        ),
    )


def small(image_size: int = 48) -> RunConfig:
    """A narrow ResNet beside word vectors, batch 96, AdamW: a CPU or one GPU, 500 to 10k images with captions.

    With more captions a text tower that knows their order pays: --method.text-layers 2 --method.text-width 256, and
    --method.text-pool last.
    """
    return RunConfig(
        name="siglip",
        method=SigLIPConfig(
            context=32,
            text_width=128,
            text_layers=0,
            text_heads=4,
            text_pool="mean",
            projection=128,
            dropout=0.2,
            crop_scale=(0.4, 1.0),
            flip=0.5,
            colour=0.5,
        ),
        encoder=EncoderConfig(
            name="resnet18",
            image_size=image_size,
            stem="half" if image_size <= scale.TINY else "imagenet",
            arch=Arch(layers=(1, 1, 1, 1), channels=(32, 64, 128, 256)),
        ),
        data=DataConfig(text=TextConfig(kind="wordpiece", vocabulary=1500, lowercase=True, held_out=0.2)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, per=96, rule="sqrt", warmup=Epochs(4)),
            weight_decay=constant(0.5),
            betas=(0.9, 0.95),
            clip=1.0,
        ),
        batch_size=96,
        length=Epochs(240),
        probe_every=Epochs(20),
        provenance=Provenance(
            source=SOURCE + ", scaled down",
            expected="docs/results.md",
            deviations="from few pairs a transformer over tokens learns captions by heart before it learns words, so a "
            "caption is the mean of its words' vectors; wider crops, flips, a colour jitter and more decay.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of two tiny towers: for tests."""
    return RunConfig(
        name="siglip",
        method=SigLIPConfig(vocabulary=300, context=16, text_width=32, text_layers=1, text_heads=2),
        encoder=scale.tiny_vit(image_size),
        data=DataConfig(text=TextConfig(vocabulary=300)),
        optim=OptimConfig(
            name="adamw", lr=LR(base=1e-3, rule="none", warmup=Steps(2)), weight_decay=constant(1e-4), betas=(0.9, 0.95)
        ),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
