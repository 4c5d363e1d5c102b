"""Recipes of the discrete VAE (arXiv 2102.12092, Sec. 2.1)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import Schedule, constant
from imprint.methods.dvae import DVAEConfig
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]


def paper(image_size: int = 112) -> RunConfig:
    """DALL-E's networks with 8,192 codes, batch 512, at the 112 pixels at which BEiT reads them (14 x 14 tokens)."""
    return RunConfig(
        name="dvae",
        method=DVAEConfig(),
        encoder=EncoderConfig(name="dvae_encoder", image_size=image_size),
        # 1e-4 to 1.25e-6 over 1,200,000 updates: this run's length.
        optim=OptimConfig(
            name="adamw", lr=LR(base=1e-4, per=512, rule="none", end=0.0125), weight_decay=constant(1e-4), eps=1e-8
        ),
        batch_size=512,
        length=Epochs(480),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2102.12092, App. A.2 and A.3; openai/DALL-E (networks)",
            expected="a tokenizer for BEiT: no figure of its own",
            deviations="trained on the user's images at 112 pixels instead of 250 million at 256 pixels, for 1,200,000 "
            "updates on ImageNet-1k, over which the paper anneals its rate, instead of 3,000,000; temperature and KL "
            "weight change over the same shares of the run.",
        ),
    )


def small(image_size: int = 32) -> RunConfig:
    """Three narrow groups (stride 4), 512 codes, batch 64: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="dvae",
        method=small_method(),
        encoder=small_encoder(image_size),
        optim=small_optim(),
        batch_size=64,
        length=Epochs(50),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2102.12092, App. A, scaled down",
            expected="docs/results.md",
            deviations="narrow networks, fewer codes and a token per 4 x 4 pixels; a higher rate, codes that start "
            "further apart; the temperature falls over the first half of the run, the KL weight rises to 2 (a token "
            "covers a quarter of the paper's pixels), over its first tenth: runs are short.",
        ),
    )


def small_method() -> DVAEConfig:
    """Return the small-scale choices, shared with BEiT's first stage."""
    return DVAEConfig(
        vocabulary=512,
        embedding=64,
        codebook_start=1.0,
        width=32,
        blocks=1,
        temperature=Schedule(start=1.0, end=1 / 16, shape="cosine", stretch=0.5),
        kl_weight=Schedule(start=0.0, end=2.0, shape="cosine", stretch=0.1),
        momentum=0.99,
        crop_scale=(0.2, 1.0),
    )


def small_encoder(image_size: int) -> EncoderConfig:
    """Return DALL-E's encoder with three narrow groups: stride 4."""
    return EncoderConfig(
        name="dvae_encoder", image_size=image_size, arch=Arch(layers=(1, 1, 1), channels=(32, 64, 128))
    )


def small_optim() -> OptimConfig:
    """Return the optimizer of the small-scale recipes."""
    return OptimConfig(
        name="adamw", lr=LR(base=3e-3, per=64, rule="sqrt", warmup=Epochs(0.5)), weight_decay=constant(1e-4), clip=1.0
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of two narrow groups: for tests."""
    return RunConfig(
        name="dvae",
        method=DVAEConfig(
            vocabulary=32,
            embedding=16,
            width=8,
            blocks=1,
            temperature=Schedule(start=1.0, end=1 / 16, shape="cosine", stretch=0.5),
            kl_weight=Schedule(start=0.0, end=6.6, shape="cosine", stretch=0.5),
            momentum=0.9,
        ),
        encoder=EncoderConfig(
            name="dvae_encoder", image_size=image_size, arch=Arch(layers=(1, 1, 1, 1), channels=(8, 16, 16, 32))
        ),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, per=16, warmup=Steps(2)), weight_decay=constant(1e-4)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
