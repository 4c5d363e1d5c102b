"""Recipes of iGPT (Chen et al. 2020, Generative Pretraining from Pixels)."""

from __future__ import annotations

import dataclasses

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.igpt import IGPTConfig
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "finetune", "paper", "paper_bert", "paper_m", "paper_s", "small", "small_bert"]

SOURCE = "Chen 2020 (Generative Pretraining from Pixels), Sec. 3; openai/image-gpt"
RATES = (
    "The paper tries the rates 0.01, 0.003, 0.001 ... in turn and keeps the best for each model; this is the one of "
    "them that its size suggests."
)


def paper_s(image_size: int = 32) -> RunConfig:
    """iGPT-S: 24 blocks of width 512 (76M), a million steps at batch 128."""
    return _paper("image_gpt_s", image_size, 0.003, layer=12)


def paper_m(image_size: int = 32) -> RunConfig:
    """iGPT-M: 36 blocks of width 1024 (455M)."""
    return _paper("image_gpt_m", image_size, 0.003, layer=18)


def paper(image_size: int = 32) -> RunConfig:
    """iGPT-L: 48 blocks of width 1536 (1.4B); the paper also trains it at 48 pixels."""
    expected = "CIFAR-10 linear probe 96.3 % (Table 1), ImageNet-1k 60.3 % (32 px) and 65.2 % (48 px)"
    return _paper("image_gpt_l", image_size, 0.001, layer=20, expected=expected)


def paper_bert(image_size: int = 32) -> RunConfig:
    """iGPT-S with the BERT objective."""
    made = _paper("image_gpt_s", image_size, 0.003, layer=12)
    return dataclasses.replace(made, method=IGPTConfig(objective="bert"))


def finetune(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """iGPT-S pretrained, then fine-tuned on labels by the joint objective L_gen + L_clf."""
    first = dataclasses.replace(_paper("image_gpt_s", image_size, 0.003, layer=12), stage="pretrain", share=0.95)
    second = dataclasses.replace(
        first,
        stage="finetune",
        start="../stage-1",
        method=IGPTConfig(stage="finetune"),
        optim=_adam(LR(base=0.0003, rule="none", warmup=Steps(100))),
        length=Epochs(30),
        probe_every=Epochs(1),
        share=0.05,
        provenance=Provenance(
            source="Chen 2020, Sec. 2.3 and 3.4",
            expected="CIFAR-10 iGPT-L fine-tuned 99.0 % (Table 3)",
            deviations="A fixed length; the paper stops at the best validation score.",
        ),
    )
    return first, second


def small(image_size: int = 12) -> RunConfig:
    """Four blocks of width 96 over 12-pixel images and 64 colours: a CPU or one GPU, 1k to 50k images.

    iGPT shrinks its images, and its cost grows with their area: 32 pixels a side are 1,024 tokens, 12 are 144.
    """
    return RunConfig(
        name="igpt",
        method=IGPTConfig(crop_scale=(0.6, 1.0)),
        encoder=_encoder("image_gpt_s", image_size, Arch(embed_dim=96, depth=4, num_heads=4, clusters=64)),
        optim=_adam(LR(base=3e-3, rule="none", warmup=Steps(100))),
        batch_size=32,
        length=Epochs(100),
        probe_every=Epochs(5),
        provenance=Provenance(
            source=SOURCE,
            expected="docs/results.md",
            deviations="smaller images, model, palette and batch, so that minutes on a CPU show something.",
        ),
    )


def small_bert(image_size: int = 12) -> RunConfig:
    """The small model with the BERT objective."""
    made = small(image_size)
    assert isinstance(made.method, IGPTConfig)
    return dataclasses.replace(made, method=dataclasses.replace(made.method, objective="bert"))


def debug(image_size: int = 8) -> RunConfig:
    """A few steps of a two-block transformer over 8-pixel images: for tests."""
    return RunConfig(
        name="igpt",
        method=IGPTConfig(crop_scale=(0.6, 1.0)),
        encoder=_encoder("image_gpt_s", image_size, Arch(embed_dim=32, depth=2, num_heads=2, clusters=16)),
        optim=_adam(LR(base=1e-3, rule="none", warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(name: str, image_size: int, rate: float, *, layer: int, expected: str = "") -> RunConfig:
    return RunConfig(
        name="igpt",
        method=IGPTConfig(),
        encoder=_encoder(name, image_size, Arch(layer=layer)),
        optim=_adam(LR(base=rate, rule="none", warmup=Epochs(1))),
        batch_size=128,
        length=Steps(1_000_000),
        probe_every=Steps(50_000),
        provenance=Provenance(source=SOURCE, expected=expected, deviations=RATES),
    )


def _encoder(name: str, image_size: int, arch: Arch) -> EncoderConfig:
    return EncoderConfig(name=name, image_size=image_size, arch=arch)


def _adam(lr: LR) -> OptimConfig:
    return OptimConfig(name="adam", lr=lr, weight_decay=constant(0.0), betas=(0.9, 0.95))
