"""Recipes of CAE (arXiv 2202.03026)."""

from __future__ import annotations

import dataclasses

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.cae import CAEConfig
from imprint.recipes import dvae, scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_800", "paper_pixels", "paper_random", "small"]

SOURCE = "arXiv 2202.03026, Sec. 4.1 and App. A; lxtGH/CAE, scripts/cae_base_800e.sh"


def paper(image_size: int = 224) -> tuple[RunConfig, RunConfig]:
    """ViT-B/16, 1600 epochs at batch 2048, on the tokens of a discrete VAE that the first stage trains."""
    return _after_dvae(_paper(image_size, 1600, "ImageNet-1k fine-tuned 83.9 %, linear 70.4 %, attentive 77.1 %"))


def paper_800(image_size: int = 224) -> tuple[RunConfig, RunConfig]:
    """The same for 800 epochs."""
    return _after_dvae(_paper(image_size, 800, "ImageNet-1k fine-tuned 83.8 %, linear 68.6 %, attentive 75.9 %"))


def paper_random(image_size: int = 224) -> RunConfig:
    """ViT-B/16, 1600 epochs, on the codes of a random projection: no tokenizer to train."""
    return _paper(image_size, 1600, "")


def paper_pixels(image_size: int = 224) -> RunConfig:
    """ViT-B/16, 1600 epochs, on normalised pixels."""
    return dataclasses.replace(_paper(image_size, 1600, ""), method=CAEConfig(target="pixels"))


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches on pixels, light regressor and decoder: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="cae",
        method=CAEConfig(
            target="pixels", heads=4, regressor_depth=2, decoder_depth=1, drop_path=0.0, crop_scale=(0.2, 1.0)
        ),
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=image_size,
            patch_size=scale.patch(image_size),
            positions="sincos_mocov3",
            init="mae",
            arch=Arch(num_heads=4),
        ),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, per=64, rule="sqrt", warmup=Steps(100)),
            weight_decay=constant(0.05),
            clip=3.0,
        ),
        batch_size=64,
        length=Epochs(400),
        probe_every=Epochs(10),
        provenance=Provenance(
            source=SOURCE + ", scaled down",
            expected="docs/results.md",
            deviations="pixels instead of a trained tokenizer's codes, a lighter regressor and decoder, no stochastic "
            "depth and a higher rate for the small model and batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT on random tokens: for tests."""
    return RunConfig(
        name="cae",
        method=CAEConfig(heads=2, regressor_depth=1, decoder_depth=1, drop_path=0.0, vocabulary=32),
        encoder=scale.tiny_vit(image_size, positions="sincos_mocov3", init="mae"),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, warmup=Steps(2)), weight_decay=constant(0.05), clip=3.0),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(image_size: int, epochs: int, expected: str) -> RunConfig:
    warmup = Epochs({800: 20, 1600: 40}[epochs])
    return RunConfig(
        name="cae",
        method=CAEConfig(),
        encoder=EncoderConfig(
            name="vit_base_patch16_224",
            image_size=image_size,
            drop_path=0.1,
            positions="sincos_mocov3",
            init="mae",
            arch=Arch(layer_scale=0.1),
        ),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1.5e-3, per=2048, warmup=warmup, floor=1e-5),
            weight_decay=constant(0.05),
            clip=3.0,
        ),
        batch_size=2048,
        length=Epochs(epochs),
        probe_every=Epochs(20),
        provenance=Provenance(source=SOURCE, expected=expected),
    )


def _after_dvae(run: RunConfig) -> tuple[RunConfig, RunConfig]:
    """Put the training of the tokenizer before a run; the paper takes DALL-E's, trained on 250 million images."""
    tokenizer = dvae.paper()
    told = dataclasses.replace(
        tokenizer.provenance, source=f"arXiv 2202.03026, Sec. 4.1 (tokenizer); {tokenizer.provenance.source}"
    )
    first = dataclasses.replace(tokenizer, stage="tokenizer", share=0.2, provenance=told)
    second = dataclasses.replace(
        run,
        stage="pretrain",
        start="../stage-1",
        share=0.8,
        method=CAEConfig(tokenizer="previous"),
        provenance=dataclasses.replace(run.provenance, deviations="the tokenizer is trained on the same images."),
    )
    return first, second
