"""Recipes of next-frame prediction, in pixels (arXiv 1511.05440) and in features (V-JEPA, arXiv 2404.08471)."""

from __future__ import annotations

import dataclasses

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import Schedule, constant
from imprint.methods.next_frame import NextFrameConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "debug_latent", "paper", "paper_vjepa", "small", "small_latent"]


def paper(image_size: int = 32) -> RunConfig:
    """ResNet-18, patches of 32 pixels of frames of 240 x 320, SGD at batch 8, 1,000,000 updates."""
    share = image_size * image_size / (240 * 320)
    return RunConfig(
        name="next_frame",
        method=NextFrameConfig(crop_scale=(share, share)),
        encoder=EncoderConfig(name="resnet18", image_size=image_size, stem=scale.stem(image_size)),
        optim=OptimConfig(name="sgd", lr=LR(base=0.04, per=8, rule="none", end=0.125), momentum=0.0),
        batch_size=8,
        length=Steps(1_000_000),
        probe_every=Steps(50_000),
        provenance=Provenance(
            source="arXiv 1511.05440; coupriec/VideoPredictionICLR2016 (train_iclr_model.lua: length, batch)",
            expected="UCF101: PSNR and sharpness of the next frame where there is motion (Table 1); no probe reported",
            deviations="the networks read an encoder's maps instead of the frames, all scales have the coarse scales' "
            "layers, no adversarial term, patches with little motion are not skipped; the rate falls from .04 to .005 "
            "along a cosine (that script: .02 throughout).",
        ),
    )


def paper_vjepa(image_size: int = 224) -> RunConfig:
    """ViT-L/16 over frames, predictor of 12 blocks, 90,000 updates at batch 3072: V-JEPA's settings."""
    return RunConfig(
        name="next_frame",
        method=NextFrameConfig(space="latent", past=7, stride=8, predictor_heads=16),
        encoder=EncoderConfig(name="vit_large_patch16_224", image_size=image_size, positions="sincos"),
        optim=OptimConfig(
            name="adamw",
            lr=LR(
                base=6.25e-4, per=3072, rule="none", floor=1e-6, warmup=Steps(12_000), warmup_from=0.32, stretch=1.25
            ),
            weight_decay=Schedule(start=0.04, end=0.4, stretch=1.25),
            clip=10.0,
        ),
        batch_size=3072,
        length=Steps(90_000),
        probe_every=Steps(9_000),
        provenance=Provenance(
            source="arXiv 2404.08471, Sec. 3 and App.; facebookresearch/jepa, configs/pretrain/vitl16.yaml",
            expected="not comparable: the paper's encoder attends over space and time (Kinetics-400 attentive probe)",
            deviations="frames are encoded one by one, 8 (a step of 8 frames, as 16 with tubes of 2 frames and a step "
            "of 4 span), the last of them whole is what is predicted; one mask per clip of blocks of 15 to 70 % that "
            "hide exactly 90 %, in place of a short-range and a long-range one.",
        ),
    )


def small(image_size: int = 64) -> RunConfig:
    """ResNet-18 with a stem of stride 2, a light decoder that predicts the change: one GPU or a CPU."""
    return RunConfig(
        name="next_frame",
        method=NextFrameConfig(width=16, hidden=(48,), predict="change"),
        encoder=EncoderConfig(name="resnet18", image_size=image_size, stem="half"),
        optim=OptimConfig(
            name="adamw", lr=LR(base=1e-3, per=16, rule="sqrt", warmup=Steps(50)), weight_decay=constant(1e-4), clip=1.0
        ),
        batch_size=16,
        length=Epochs(200),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 1511.05440, scaled down",
            expected="docs/results.md",
            deviations="AdamW, one hidden layer per scale; predicts the change since the last frame.",
        ),
    )


def small_latent(image_size: int = 64) -> RunConfig:
    """ViT-Tiny with patches of 8 pixels, a predictor of two blocks, half of the places hidden: one GPU or a CPU."""
    return RunConfig(
        name="next_frame",
        method=NextFrameConfig(
            space="latent",
            mask_ratio=0.5,
            predictor_width=96,
            predictor_depth=2,
            predictor_heads=3,
            momentum=Schedule(start=0.99, end=1.0, shape="linear"),
        ),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", image_size=image_size, patch_size=8, positions="sincos"),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=5e-4, per=16, rule="sqrt", floor=1e-6, warmup=Steps(50)),
            weight_decay=constant(0.04),
            clip=10.0,
        ),
        batch_size=16,
        length=Epochs(200),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2404.08471, scaled down",
            expected="docs/results.md",
            deviations="half of the places hidden instead of nine tenths, a lighter predictor, a faster teacher.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps in pixels with a narrow ResNet: for tests."""
    return RunConfig(
        name="next_frame",
        method=NextFrameConfig(past=2, width=4, hidden=(8,), scales=2),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, warmup=Steps(2)), weight_decay=constant(1e-4)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def debug_latent(image_size: int = 32) -> RunConfig:
    """A few steps in features with a two-block ViT: for tests."""
    return dataclasses.replace(
        debug(image_size),
        method=NextFrameConfig(
            space="latent", past=2, mask_ratio=0.5, predictor_width=16, predictor_depth=1, predictor_heads=2
        ),
        encoder=scale.tiny_vit(image_size, positions="sincos"),
    )
