"""Recipes of BEiT (arXiv 2106.08254): train a tokenizer, then name its words; or name those of a random projection."""

from __future__ import annotations

import dataclasses

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.beit import BEiTConfig
from imprint.methods.dvae import DVAEConfig
from imprint.recipes import dvae, scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = [
    "debug",
    "debug_dvae",
    "paper",
    "paper_random",
    "paper_vit_large",
    "small",
    "small_dvae",
]

SOURCE = "arXiv 2106.08254, Sec. 2.4 and App. D; microsoft/unilm, beit (run_beit_pretraining.py and its README)"


def paper(image_size: int = 224) -> tuple[RunConfig, RunConfig]:
    """A discrete VAE, then ViT-B/16 on its words for 800 epochs at batch 2048, as in the paper."""
    return _staged(_paper("beit_base_patch16_224", image_size, 0.1, expected="ImageNet-1k fine-tuned 83.2 % (Table 1)"))


def paper_vit_large(image_size: int = 224) -> tuple[RunConfig, RunConfig]:
    """A discrete VAE, then ViT-L/16."""
    return _staged(
        _paper("beit_large_patch16_224", image_size, 1e-5, expected="ImageNet-1k fine-tuned 85.2 % (Table 1)")
    )


def paper_random(image_size: int = 224) -> RunConfig:
    """ViT-B/16 on the words of a random projection: one stage."""
    run = _paper("beit_base_patch16_224", image_size, 0.1)
    provenance = Provenance(
        source=f"{SOURCE}; arXiv 2112.10740, Sec. 3",
        deviations="no trained tokenizer: SplitMask found random vocabularies as good for pretraining.",
    )
    return dataclasses.replace(run, method=BEiTConfig(tokenizer="random"), provenance=provenance)


def _paper(name: str, image_size: int, layer_scale: float, expected: str = "") -> RunConfig:
    return RunConfig(
        name="beit",
        method=BEiTConfig(),
        encoder=EncoderConfig(
            name=name,
            image_size=image_size,
            drop_path=0.1,
            init="beit",
            arch=Arch(relative_positions="shared", absolute_positions=False, layer_scale=layer_scale),
        ),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1.5e-3, per=2048, floor=1e-5, warmup=Epochs(10), warmup_reaches_peak=True),
            weight_decay=constant(0.05),
            betas=(0.9, 0.98),
            clip=3.0,
        ),
        batch_size=2048,
        length=Epochs(800),
        probe_every=Epochs(20),
        provenance=Provenance(
            source=SOURCE,
            expected=expected,
            deviations="the tokenizer is trained on the user's images (DALL-E's was, on 250 million); Adam's second "
            "beta is that of the public code (0.98), the paper's table says 0.999.",
        ),
    )


def _staged(run: RunConfig) -> tuple[RunConfig, RunConfig]:
    """Put the paper's tokenizer before a run: it reads the crop at half size, a word per patch of 16 pixels."""
    first = dvae.paper(run.encoder.image_size // 2)
    provenance = dataclasses.replace(run.provenance, source=f"{SOURCE}; tokenizer: {first.provenance.source}")
    first = dataclasses.replace(first, stage="tokenizer", share=0.4, provenance=provenance)
    return first, dataclasses.replace(run, stage="pretrain", start="../stage-1", share=0.6)


def small(image_size: int = 96) -> RunConfig:
    """A narrow ViT on the words of a random projection, batch 64: one GPU or a CPU, 1k to 50k images."""
    patch = scale.patch(image_size)
    return RunConfig(
        name="beit",
        method=BEiTConfig(
            tokenizer="random",
            vocabulary=1024,
            projection=4,
            min_block=4,
            crop_scale=(0.2, 1.0),
            colour=0.0 if image_size <= scale.TINY else 0.4,
        ),
        encoder=EncoderConfig(
            name="beit_base_patch16_224",
            image_size=image_size,
            patch_size=patch,
            init="beit",
            arch=Arch(
                embed_dim=192,
                depth=6,
                num_heads=6,
                relative_positions="shared",
                absolute_positions=False,
                layer_scale=0.1,
            ),
        ),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=2e-3, per=64, rule="sqrt", floor=1e-5, warmup=Steps(100)),
            weight_decay=constant(0.05),
            betas=(0.9, 0.98),
            clip=3.0,
        ),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source=f"{SOURCE}; arXiv 2112.10740, Sec. 3; scaled down",
            expected="docs/results.md",
            deviations="a narrow ViT with fine patches, few words of a random projection to 4 values (which uses all "
            "of them), blocks of at least 4 patches, a higher rate.",
        ),
    )


def small_dvae(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """The same on the words of a small discrete VAE, which is trained first."""
    run = small(image_size)
    first = dataclasses.replace(dvae.small(image_size), stage="tokenizer", length=Epochs(30), share=0.3)
    assert isinstance(first.method, DVAEConfig) and isinstance(run.method, BEiTConfig)
    method = dataclasses.replace(run.method, tokenizer="dvae", vocabulary=first.method.vocabulary)
    return first, dataclasses.replace(run, method=method, stage="pretrain", start="../stage-1", share=0.7)


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT on the words of a random projection: for tests."""
    return RunConfig(
        name="beit",
        method=BEiTConfig(tokenizer="random", vocabulary=32, projection=4, min_block=2),
        encoder=EncoderConfig(
            name="beit_base_patch16_224",
            image_size=image_size,
            patch_size=8,
            drop_path=0.1,
            init="beit",
            arch=Arch(
                embed_dim=32,
                depth=2,
                num_heads=2,
                relative_positions="shared",
                absolute_positions=False,
                layer_scale=0.1,
            ),
        ),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1.5e-3, per=16, warmup=Steps(2)),
            weight_decay=constant(0.05),
            betas=(0.9, 0.98),
            clip=3.0,
        ),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def debug_dvae(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """Two tiny stages, a discrete VAE and BEiT on its words: for tests."""
    first = dataclasses.replace(dvae.debug(image_size), stage="tokenizer")
    run = debug(image_size)
    assert isinstance(first.method, DVAEConfig) and isinstance(run.method, BEiTConfig)
    method = dataclasses.replace(run.method, tokenizer="dvae", vocabulary=first.method.vocabulary)
    return first, dataclasses.replace(run, method=method, stage="pretrain", start="../stage-1")
