"""Recipes of LeJEPA (arXiv 2511.08544)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.lejepa import LeJEPAConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_resnet50", "paper_vit_large", "small"]

_SOURCE = "arXiv 2511.08544, Sec. 6; rbalestr-lab/lejepa, README (views, AdamW 5e-4, decay, final rate) and MINIMAL.md"
_OPEN = (
    "the batch size and the length of the warm-up are not in the public code: 512 images and 10 epochs are taken. "
    "The projector's width is that of MINIMAL.md."
)


def paper(image_size: int = 224) -> RunConfig:
    """ViT-H/14, 2 x 224 + 6 x 98 crops, 100 epochs, as in the paper."""
    return _paper("vit_huge_patch14_224", image_size, "ImageNet-1k linear probe 79 % (abstract)")


def paper_vit_large(image_size: int = 224) -> RunConfig:
    """ViT-L/14, 100 epochs."""
    return _paper(
        "vit_large_patch14_224", image_size, "CIFAR-10 96.5 %, CIFAR-100 83.7 % linear, all labels (public README)"
    )


def paper_resnet50(image_size: int = 224) -> RunConfig:
    """ResNet-50 with the smaller weight decay for ResNets, 100 epochs."""
    return _paper("resnet50", image_size, "", decay=5e-4)


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, two large and two small views, batch 128, AdamW: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="lejepa",
        method=LeJEPAConfig(
            hidden=512,
            projection=64,
            slices=256,
            global_scale=(0.2, 1.0),
            local_crops=2,
            local_scale=(0.1, 0.4),
            local_size=scale.local(image_size, scale.patch(image_size)),
            blur=0.0 if tiny else 1.0,
            solarise=0.0 if tiny else 0.2,
        ),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 2511.08544, scaled down",
            expected="docs/results.md",
            deviations="fewer and larger small views, a narrower projector, fewer directions (public minimal example: "
            "256) and a higher rate: they learn faster in short runs at a small batch.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="lejepa",
        method=LeJEPAConfig(
            hidden=64, projection=16, slices=64, local_crops=2, local_size=16, colour=0.5, blur=0.0, solarise=0.0
        ),
        encoder=scale.tiny_vit(image_size),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, rule="none", warmup=Steps(2)), weight_decay=constant(5e-2)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(name: str, image_size: int, figure: str, *, decay: float = 5e-2) -> RunConfig:
    vit = name.startswith("vit")
    return RunConfig(
        name="lejepa",
        method=LeJEPAConfig(local_size=98 if image_size == 224 else scale.local(image_size, 14 if vit else 32)),
        encoder=EncoderConfig(name=name, image_size=image_size, drop_path=0.1 if vit else 0.0),
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=5e-4, rule="none", end=1e-3, warmup=Epochs(10), warmup_from=0.01),
            weight_decay=constant(decay),
        ),
        batch_size=512,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(source=_SOURCE, expected=figure, deviations=_OPEN),
    )
