"""Recipes of CLIP (arXiv 2103.00020)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.texts import TextConfig
from imprint.methods.clip import CLIPConfig
from imprint.recipes import scale
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_b16", "paper_l14", "paper_r50", "small"]

SOURCE = "arXiv 2103.00020, Sec. 2 and Tables 18 to 20; openai/CLIP; mlfoundations/open_clip"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels of the paper's images (openai/CLIP)."""


def paper(image_size: int = 224) -> RunConfig:
    """ViT-B/32 and the 12-layer text tower, 32 epochs of 400 million pairs at batch 32,768."""
    return _paper("vit_base_patch32_clip_quickgelu_224", image_size, 512, 5e-4, (0.9, 0.98), 1e-6, "63.2")


def paper_b16(image_size: int = 224) -> RunConfig:
    """ViT-B/16, otherwise as ViT-B/32."""
    return _paper("vit_base_patch16_clip_quickgelu_224", image_size, 512, 5e-4, (0.9, 0.98), 1e-6, "68.6")


def paper_l14(image_size: int = 224) -> RunConfig:
    """ViT-L/14 and a text tower of width 768."""
    name = "vit_large_patch14_clip_quickgelu_224"
    return _paper(name, image_size, 768, 4e-4, (0.9, 0.98), 1e-6, "75.3 (76.2 after an epoch at 336 pixels)", 768, 12)


def paper_r50(image_size: int = 224) -> RunConfig:
    """ResNet-50 with CLIP's stem, blurred strides and attention pooling."""
    return _paper("resnet50_clip", image_size, 1024, 5e-4, (0.9, 0.999), 1e-8, "59.6")


def _paper(
    encoder: str,
    image_size: int,
    projection: int,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    expected: str,
    width: int = 512,
    heads: int = 8,
) -> RunConfig:
    return RunConfig(
        name="clip",
        method=CLIPConfig(projection=projection, text_width=width, text_heads=heads),
        encoder=EncoderConfig(name=encoder, image_size=image_size),
        data=DataConfig(mean=MEAN, std=STD, text=TextConfig(vocabulary=49_408, lowercase=True, held_out=0.0005)),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=rate, rule="none", warmup=Steps(2000)),
            weight_decay=constant(0.2),
            betas=betas,
            eps=eps,
        ),
        batch_size=32_768,
        length=Epochs(32),
        probe_every=Epochs(1),
        provenance=Provenance(
            source=SOURCE,
            expected=f"ImageNet-1k zero-shot top-1 {expected} % on 400 million pairs that are not public",
            deviations="a tokenizer of as many tokens learned on the run's own captions; no interpolated activation "
            "checkpointing or half-precision Adam (--checkpoint-activations, --precision bf16).",
        ),
    )


def small(image_size: int = 48) -> RunConfig:
    """A narrow ResNet beside word vectors, batch 96, AdamW: a CPU or one GPU, 500 to 10k images with captions.

    With more captions a text tower that knows their order pays: --method.text-layers 2 --method.text-width 256, and
    --method.text-pool end.
    """
    return RunConfig(
        name="clip",
        method=CLIPConfig(
            context=32,
            text_width=128,
            text_layers=0,
            text_heads=4,
            text_pool="mean",
            projection=128,
            dropout=0.2,
            label_smoothing=0.05,
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
            betas=(0.9, 0.98),
            eps=1e-6,
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
        name="clip",
        method=CLIPConfig(
            vocabulary=300, context=16, text_width=32, text_layers=1, text_heads=2, projection=16, flip=0.5, colour=0.5
        ),
        encoder=scale.tiny_vit(image_size),
        data=DataConfig(text=TextConfig(vocabulary=300)),
        optim=OptimConfig(
            name="adamw", lr=LR(base=1e-3, rule="none", warmup=Steps(2)), weight_decay=constant(0.2), betas=(0.9, 0.98)
        ),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
