"""Recipes of MoCo v3 (arXiv 2104.02057)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant, cosine
from imprint.methods.moco_v3 import MoCoV3Config
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_resnet50", "paper_vit_base", "small", "small_vit"]


def paper(image_size: int = 224) -> RunConfig:
    """ViT-S/16 with 12 heads, 300 epochs at batch 4096, as in the paper."""
    # The public code's ViT-S has heads of 32 dimensions.
    return _vit("vit_small_patch16_224", image_size, Arch(num_heads=12), "73.2")


def paper_vit_base(image_size: int = 224) -> RunConfig:
    """ViT-B/16, 300 epochs at batch 4096."""
    return _vit("vit_base_patch16_224", image_size, Arch(), "76.7")


def paper_resnet50(image_size: int = 224) -> RunConfig:
    """ResNet-50, LARS, 1000 epochs at batch 4096."""
    return RunConfig(
        name="moco_v3",
        method=MoCoV3Config(temperature=1.0, momentum=cosine(0.996, 1.0), decay_all=False, crop_scale=(0.2, 1.0)),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="lars",
            lars="mocov3",
            lr=LR(base=0.3, warmup=Epochs(10)),
            weight_decay=constant(1.5e-6),
            momentum=0.9,
        ),
        batch_size=4096,
        length=Epochs(1000),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2104.02057, App. B; facebookresearch/moco-v3, README (ResNet-50, 1000 epochs)",
            expected="ImageNet-1k linear probe 74.6 % top-1",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, batch 128, AdamW: one GPU or a CPU, 1k to 50k images; for a ViT see `small_vit`."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="moco_v3",
        method=_small_method(tiny),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=_small_provenance("AdamW instead of LARS, "),
    )


def small_vit(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches, fixed positions and patch projection, batch 128: one GPU or a CPU."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="moco_v3",
        method=_small_method(tiny),
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=image_size,
            patch_size=scale.patch(image_size),
            positions="sincos_mocov3",
            init="mocov3",
        ),
        optim=OptimConfig(
            name="adamw", lr=LR(base=1e-3, per=128, rule="sqrt", warmup=Epochs(2)), weight_decay=constant(0.1)
        ),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=_small_provenance(""),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="moco_v3",
        method=MoCoV3Config(hidden=32, projection=16, colour=0.5, blur=0.0),
        encoder=scale.tiny_vit(image_size, positions="sincos_mocov3", init="mocov3"),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, warmup=Steps(2)), weight_decay=constant(0.1)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _vit(name: str, image_size: int, arch: Arch, figure: str) -> RunConfig:
    return RunConfig(
        name="moco_v3",
        method=MoCoV3Config(),
        encoder=EncoderConfig(name=name, image_size=image_size, positions="sincos_mocov3", init="mocov3", arch=arch),
        optim=OptimConfig(name="adamw", lr=LR(base=1.5e-4, warmup=Epochs(40)), weight_decay=constant(0.1)),
        batch_size=4096,
        length=Epochs(300),
        probe_every=Epochs(20),
        provenance=Provenance(
            source="arXiv 2104.02057, Sec. 4 and 5; facebookresearch/moco-v3 (--stop-grad-conv1 --moco-m-cos)",
            expected=f"ImageNet-1k linear probe {figure} % top-1",
        ),
    )


def _small_method(tiny: bool) -> MoCoV3Config:
    return MoCoV3Config(
        hidden=1024,
        projection=128,
        crop_scale=(0.2, 1.0),
        colour=0.5 if tiny else 1.0,
        blur=0.0 if tiny else 1.0,
    )


def _small_provenance(optimizer: str) -> Provenance:
    return Provenance(
        source="arXiv 2104.02057, scaled down",
        expected="docs/results.md",
        deviations=f"{optimizer}narrower heads and crops of at least 20 % of the area: both learn faster in short runs "
        "at a small batch; no blur and half the jitter up to 64 pixels.",
    )
