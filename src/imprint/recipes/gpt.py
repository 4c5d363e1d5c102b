"""Recipes of GPT (Radford et al. 2018, Improving Language Understanding by Generative Pre-Training) and GPT-3."""

from __future__ import annotations

from typing import Any

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.texts import TextConfig
from imprint.methods.gpt import GPTConfig
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "gpt3_small", "paper", "small"]


def paper(image_size: int = 224) -> RunConfig:
    """GPT: 12 layers of width 768 over rows of 512 tokens, 100 epochs at batch 64."""
    return RunConfig(
        name="gpt",
        method=GPTConfig(),
        encoder=_encoder("text:gpt", image_size),
        data=DataConfig(text=TextConfig(kind="bpe", vocabulary=40_478, lowercase=True, document="file")),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=2.5e-4, rule="none", warmup=Steps(2_000)),
            weight_decay=constant(0.01),
            clip=1.0,
        ),
        batch_size=64,
        length=Epochs(100),
        checkpoint_every=Epochs(1),
        probe_every=Epochs(5),
        provenance=Provenance(
            source="Radford 2018, Sec. 4.1; openai/finetune-transformer-lm (optimizer, lower case)",
            expected="BooksCorpus: perplexity 18.4; GLUE 72.8 after fine-tuning",
            deviations="a byte-level BPE learned on the corpus, without ftfy and spaCy before it; gradients are "
            "clipped at norm 1, as in the published fine-tuning code (the paper does not say); decoupled weight decay, "
            "which is what that code calls modified L2; rows begin at fixed places of the text.",
        ),
    )


def gpt3_small(image_size: int = 224) -> RunConfig:
    """GPT-3 Small: 12 layers of width 768, pre-norm, over rows of 2,048 tokens, half a million tokens a batch."""
    return RunConfig(
        name="gpt",
        method=GPTConfig(length=2048),
        encoder=_encoder("text:gpt2", image_size, dropout=0.0),
        data=DataConfig(text=TextConfig(kind="bpe", vocabulary=50_257)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=6e-4, rule="none", end=0.1, warmup=Steps(715), stretch=26 / 30),
            weight_decay=constant(0.1),
            betas=(0.9, 0.95),
            eps=1e-8,
            clip=1.0,
        ),
        batch_size=256,
        length=Steps(572_000),
        checkpoint_every=Steps(1_000),
        probe_every=Steps(5_000),
        provenance=Provenance(
            source="arXiv 2005.14165, Table 2.1 and App. B",
            expected="LAMBADA 42.7 % zero-shot, 22.0 % one- and few-shot (Table H.1), after 300 billion tokens",
            deviations="full attention in every layer (GPT-3 alternates with banded sparse ones); the batch is whole "
            "from the start instead of growing over the first four billion tokens.",
        ),
    )


def small(image_size: int = 32) -> RunConfig:
    """Four pre-norm layers of width 128 over rows of 128 tokens, a vocabulary of 1,024: one core, 1 to 10 MB."""
    return RunConfig(
        name="gpt",
        method=GPTConfig(length=128),
        encoder=_encoder("text:gpt2", image_size, embed_dim=128, depth=4, num_heads=4, dropout=0.1),
        data=DataConfig(text=TextConfig(kind="bpe", vocabulary=1024)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=2e-3, rule="none", end=0.05, warmup=Steps(100)),
            weight_decay=constant(0.1),
            betas=(0.9, 0.95),
            clip=1.0,
        ),
        batch_size=16,
        length=Epochs(15),
        probe_every=Epochs(1),
        probe_images=512,
        provenance=Provenance(
            source="arXiv 2005.14165, App. B (optimizer), scaled down",
            expected="docs/results.md",
            deviations="a small network, vocabulary and context, and the larger rate that suits narrow networks; with "
            "more text learn more tokens (--data.text.vocabulary).",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-layer network over rows of 16 tokens: for tests."""
    return RunConfig(
        name="gpt",
        method=GPTConfig(vocabulary=300, length=16),
        encoder=_encoder("text:gpt", image_size, embed_dim=32, depth=2, num_heads=2, dropout=0.0),
        data=DataConfig(text=TextConfig(kind="bpe", vocabulary=300)),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, rule="none", warmup=Steps(2)), weight_decay=constant(0.01)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _encoder(name: str, image_size: int, **sizes: Any) -> EncoderConfig:
    return EncoderConfig(name=name, image_size=image_size, arch=Arch(**sizes))
