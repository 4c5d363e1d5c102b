"""Recipes of ALBERT (arXiv 1909.11942): four sizes whose layers share their weights, embeddings of width 128."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.texts import TextConfig
from imprint.methods.albert import ALBERTConfig
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_large", "paper_xlarge", "paper_xxlarge", "small"]

EMBEDDING = 128
"""E of all sizes (Sec. 4.4 and Table 1)."""


def paper(image_size: int = 32) -> RunConfig:
    """ALBERT-base (12M): 12 layers of width 768, 125,000 steps at batch 4,096."""
    return _paper(image_size, Arch(embedding=EMBEDDING), 4e-4, expected="average of five tasks 80.1 (Table 2)")


def paper_large(image_size: int = 32) -> RunConfig:
    """ALBERT-large (18M): 24 layers of width 1,024."""
    sizes = Arch(embed_dim=1024, depth=24, num_heads=16, embedding=EMBEDDING)
    return _paper(image_size, sizes, 3e-4, expected="average of five tasks 82.4 (Table 2)")


def paper_xlarge(image_size: int = 32) -> RunConfig:
    """ALBERT-xlarge (60M): 24 layers of width 2,048."""
    sizes = Arch(embed_dim=2048, depth=24, num_heads=32, embedding=EMBEDDING)
    return _paper(image_size, sizes, 2e-4, expected="average of five tasks 85.5 (Table 2)")


def paper_xxlarge(image_size: int = 32) -> RunConfig:
    """ALBERT-xxlarge (223M; the paper says 235M): 12 layers of width 4,096, without dropout (Sec. 4.8)."""
    sizes = Arch(embed_dim=4096, depth=12, num_heads=64, embedding=EMBEDDING, dropout=0.0)
    return _paper(image_size, sizes, 1e-4, expected="average of five tasks 88.7 (Table 2)")


def _paper(image_size: int, arch: Arch, rate: float, *, expected: str) -> RunConfig:
    return RunConfig(
        name="albert",
        method=ALBERTConfig(),
        encoder=EncoderConfig(name="text:albert", image_size=image_size, arch=arch),
        data=DataConfig(text=TextConfig(kind="unigram", vocabulary=30_000, lowercase=True)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=rate, rule="none", warmup=Steps(3_125), shape="linear"),
            weight_decay=constant(0.01),
            eps=1e-6,
            clip=1.0,
        ),
        batch_size=4096,
        length=Steps(125_000),
        checkpoint_every=Steps(1_000),
        probe_every=Steps(2_500),
        provenance=Provenance(
            source="arXiv 1909.11942, Sec. 4.1 and Table 1; google-research/albert (warm-up, weight decay, clipping)",
            expected=expected,
            deviations="AdamW instead of LAMB at 0.00176, at rates of the size that Adam takes for BERT and RoBERTa: "
            "they are ours; SentencePieces are learned on your own text; 15 % of the tokens are predicted at every "
            "length, where the public code stops at 20.",
        ),
    )


def small(image_size: int = 32) -> RunConfig:
    """Two passes through a layer of width 160 over rows of 64 tokens: one core or one GPU, 1 to 10 MB of text."""
    return RunConfig(
        name="albert",
        method=ALBERTConfig(length=64),
        encoder=EncoderConfig(
            name="text:albert",
            image_size=image_size,
            arch=Arch(embed_dim=160, depth=2, num_heads=4, embedding=64, dropout=0.0),
        ),
        data=DataConfig(text=TextConfig(kind="unigram", vocabulary=2_000, lowercase=True)),
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
            source="arXiv 1909.11942",
            expected="docs/results.md",
            deviations="a small network, vocabulary and batch, short rows, a cosine and no dropout, so that minutes on "
            "a CPU show something.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a layer used twice: for tests."""
    return RunConfig(
        name="albert",
        method=ALBERTConfig(vocabulary=300, length=32, copies=2),
        encoder=EncoderConfig(
            name="text:albert",
            image_size=image_size,
            arch=Arch(embed_dim=32, depth=2, num_heads=2, embedding=16, dropout=0.0),
        ),
        data=DataConfig(text=TextConfig(kind="unigram", vocabulary=300)),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, rule="none", warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
