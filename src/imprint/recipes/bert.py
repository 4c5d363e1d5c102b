"""Recipes of BERT (arXiv 1810.04805): nine tenths of the steps on rows of 128 tokens, the rest on rows of 512."""

from __future__ import annotations

import dataclasses

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.texts import TextConfig
from imprint.methods.bert import BERTConfig
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_large", "small"]

DEVIATIONS = (
    "Adam's moments start anew at the second stage; its bias is corrected, which the public code leaves out; weight "
    "decay is decoupled, as in the public code. WordPieces are learned on your own text."
)


def paper(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """BERT-base (110M): a million steps at batch 256, the last tenth of them on long rows."""
    return _paper(image_size, Arch(), expected="GLUE test 79.6 after fine-tuning (Table 1)")


def paper_large(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """BERT-large (340M): 24 layers of width 1,024."""
    sizes = Arch(embed_dim=1024, depth=24, num_heads=16)
    return _paper(image_size, sizes, expected="GLUE test 82.1 after fine-tuning (Table 1)")


def _paper(image_size: int, arch: Arch, *, expected: str) -> tuple[RunConfig, RunConfig]:
    # One straight line over the million steps: at a tenth of the peak when the long rows begin.
    first = RunConfig(
        name="bert",
        stage="short rows",
        method=BERTConfig(length=128, max_predictions=20),
        encoder=EncoderConfig(name="text:bert", image_size=image_size, arch=arch),
        data=DataConfig(text=TextConfig(kind="wordpiece", vocabulary=30_522, lowercase=True)),
        optim=_adam(LR(base=1e-4, rule="none", warmup=Steps(10_000), shape="linear", end=0.1)),
        batch_size=256,
        length=Steps(900_000),
        checkpoint_every=Steps(1_000),
        probe_every=Steps(10_000),
        share=0.7,
        provenance=Provenance(
            source="arXiv 1810.04805, App. A.2; google-research/bert (run_pretraining.py)",
            expected=expected,
            deviations=DEVIATIONS,
        ),
    )
    second = dataclasses.replace(
        first,
        stage="long rows",
        start="../stage-1",
        method=BERTConfig(length=512, max_predictions=80),
        optim=_adam(LR(base=1e-5, rule="none", shape="linear")),
        length=Steps(100_000),
        share=0.3,
    )
    return first, second


def small(image_size: int = 32) -> RunConfig:
    """Two layers of width 128 over rows of 64 tokens: one core or one GPU, 1 to 10 MB of text."""
    return RunConfig(
        name="bert",
        method=BERTConfig(length=64),
        encoder=EncoderConfig(
            name="text:bert", image_size=image_size, arch=Arch(embed_dim=128, depth=2, num_heads=4, dropout=0.0)
        ),
        data=DataConfig(text=TextConfig(kind="wordpiece", vocabulary=2_000, lowercase=True)),
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
            source="arXiv 1810.04805",
            expected="docs/results.md",
            deviations="a small network, vocabulary and batch, short rows, a larger rate, a cosine and no dropout, so "
            "that minutes on a CPU show something.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of two narrow layers: for tests."""
    return RunConfig(
        name="bert",
        method=BERTConfig(vocabulary=300, length=32),
        encoder=EncoderConfig(
            name="text:bert", image_size=image_size, arch=Arch(embed_dim=32, depth=2, num_heads=2, dropout=0.0)
        ),
        data=DataConfig(text=TextConfig(kind="wordpiece", vocabulary=300)),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, rule="none", warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adam(lr: LR) -> OptimConfig:
    return OptimConfig(name="adamw", lr=lr, weight_decay=constant(0.01), betas=(0.9, 0.999), eps=1e-6, clip=1.0)
