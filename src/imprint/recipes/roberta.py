"""Recipes of RoBERTa (arXiv 1907.11692): large batches of whole rows, masks drawn anew at every step."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.texts import TextConfig
from imprint.methods.roberta import RoBERTaConfig
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_large", "small"]


def paper(image_size: int = 32) -> RunConfig:
    """RoBERTa-base (125M): 500,000 steps at batch 8,192."""
    return _paper(image_size, Arch(), rate=6e-4, warmup=24_000, expected="MNLI-m 87.6, SST-2 94.8 (public code)")


def paper_large(image_size: int = 32) -> RunConfig:
    """RoBERTa-large (355M): 24 layers of width 1,024."""
    sizes = Arch(embed_dim=1024, depth=24, num_heads=16)
    return _paper(image_size, sizes, rate=4e-4, warmup=30_000, expected="MNLI 90.2, SST-2 96.4 (Table 5)")


def _paper(image_size: int, arch: Arch, *, rate: float, warmup: int, expected: str) -> RunConfig:
    return RunConfig(
        name="roberta",
        method=RoBERTaConfig(),
        encoder=EncoderConfig(name="text:bert", image_size=image_size, arch=arch),
        data=DataConfig(text=TextConfig(kind="bpe", vocabulary=50_000)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=rate, rule="none", warmup=Steps(warmup), shape="linear"),
            weight_decay=constant(0.01),
            betas=(0.9, 0.98),
            eps=1e-6,
        ),
        batch_size=8192,
        length=Steps(500_000),
        checkpoint_every=Steps(1_000),
        probe_every=Steps(5_000),
        provenance=Provenance(
            source="arXiv 1907.11692, Sec. 4 and Table 9",
            expected=expected,
            deviations="a byte-level BPE learned on your own text; rows are cut every 512 tokens and not at ends of "
            "sentences.",
        ),
    )


def small(image_size: int = 32) -> RunConfig:
    """Two layers of width 128 over rows of 64 tokens: one core or one GPU, 1 to 10 MB of text."""
    return RunConfig(
        name="roberta",
        method=RoBERTaConfig(length=64),
        encoder=EncoderConfig(
            name="text:bert", image_size=image_size, arch=Arch(embed_dim=128, depth=2, num_heads=4, dropout=0.0)
        ),
        data=DataConfig(text=TextConfig(kind="bpe", vocabulary=2_000)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=2e-3, rule="none", warmup=Steps(200)),
            weight_decay=constant(0.01),
            betas=(0.9, 0.98),
            clip=1.0,
        ),
        batch_size=32,
        length=Epochs(60),
        probe_every=Epochs(2),
        provenance=Provenance(
            source="arXiv 1907.11692",
            expected="docs/results.md",
            deviations="a small network, vocabulary and batch, short rows, a larger rate, a cosine and no dropout, so "
            "that minutes on a CPU show something.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of two narrow layers: for tests."""
    return RunConfig(
        name="roberta",
        method=RoBERTaConfig(vocabulary=300, length=32),
        encoder=EncoderConfig(
            name="text:bert", image_size=image_size, arch=Arch(embed_dim=32, depth=2, num_heads=2, dropout=0.0)
        ),
        data=DataConfig(text=TextConfig(kind="bpe", vocabulary=300)),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, rule="none", warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
