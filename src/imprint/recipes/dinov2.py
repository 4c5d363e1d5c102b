"""Recipes of DINOv2 (arXiv 2304.07193), with registers (arXiv 2309.16588) and its distillation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from imprint.backbones.arch import Arch
from imprint.core.progress import Duration, Epochs, Steps
from imprint.core.schedules import Schedule, constant, cosine
from imprint.methods.dinov2 import DINOv2Config
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = [
    "debug",
    "paper",
    "paper_distill",
    "paper_high_resolution",
    "paper_registers",
    "paper_vit_giant",
    "paper_vit_large",
    "small",
    "small_distill",
    "small_registers",
]

SOURCE = "arXiv 2304.07193, App. B; facebookresearch/dinov2, configs/train"
EPOCH = 1250
"""Steps that the public code calls an epoch, whatever the data."""


def paper(image_size: int = 224) -> RunConfig:
    """ViT-L/16 on ImageNet-1k, 125,000 steps at batch 2048: the public code's short configuration (shared head)."""
    return RunConfig(
        name="dinov2",
        method=DINOv2Config(
            prototypes=65_536,
            bottleneck=256,
            shared_head=True,
            centring="mean",
            teacher_temp=_teacher_temp(0.07, Steps(30 * EPOCH)),
            momentum=cosine(0.992, 1.0),
            freeze_prototypes=Steps(EPOCH),
            local_size=96,
        ),
        encoder=EncoderConfig(
            name="vit_large_patch16_224",
            image_size=image_size,
            drop_path=0.3,
            uniform_drop_path=True,
            drop_samples=True,
            arch=Arch(layer_scale=1e-5),
        ),
        optim=_adamw(4e-3, warmup=Steps(10 * EPOCH), weight_decay=(0.04, 0.4), layer_decay=0.9),
        batch_size=2048,
        length=Steps(100 * EPOCH),
        checkpoint_every=Steps(EPOCH),
        probe_every=Steps(10 * EPOCH),
        provenance=Provenance(
            source="arXiv 2304.07193; facebookresearch/dinov2, configs/train/vitl16_short.yaml and README",
            expected="ImageNet-1k kNN 81.6 %, linear probe 82.9 % (README; about a day on 32 A100)",
        ),
    )


def paper_vit_large(image_size: int = 224) -> RunConfig:
    """ViT-L/14 with the giant's settings (separate heads, Sinkhorn-Knopp) on ImageNet-22k, 625,000 steps."""
    giant = paper_vit_giant(image_size)
    encoder = dataclasses.replace(
        giant.encoder, name="vit_large_patch14_dinov2", arch=Arch(layer_scale=1e-5), drop_path=0.4
    )
    expected = "ImageNet-1k kNN 82.0 %, linear probe 84.5 % (README, ImageNet-22k)"
    return dataclasses.replace(
        giant,
        encoder=encoder,
        provenance=Provenance(source="arXiv 2304.07193; facebookresearch/dinov2, vitl14.yaml", expected=expected),
    )


def paper_vit_giant(image_size: int = 224) -> RunConfig:
    """ViT-g/14 with SwiGLU on a large curated set, 625,000 steps at batch 3072."""
    return RunConfig(
        name="dinov2",
        method=DINOv2Config(
            teacher_temp=_teacher_temp(0.07, Steps(30 * EPOCH)),
            freeze_prototypes=Steps(EPOCH),
        ),
        encoder=EncoderConfig(
            name="vit_giant_patch14_dinov2",
            image_size=image_size,
            drop_path=0.4,
            uniform_drop_path=True,
            drop_samples=True,
        ),
        optim=_adamw(2e-4, warmup=Steps(80 * EPOCH), weight_decay=(0.04, 0.2), layer_decay=1.0),
        batch_size=3072,
        length=Steps(500 * EPOCH),
        checkpoint_every=Steps(EPOCH),
        probe_every=Steps(20 * EPOCH),
        checkpoint_activations=True,
        shard="optimizer",
        provenance=Provenance(
            source="facebookresearch/dinov2, configs/train/vitg14.yaml; arXiv 2304.07193, Table 16",
            expected="ImageNet-1k kNN 83.5 %, linear probe 86.5 % on LVD-142M (Table 4)",
            deviations="curate the images beforehand (deduplication, retrieval around seeds: Sec. 3); plain data "
            "parallelism with a divided optimizer state instead of FSDP.",
        ),
    )


def paper_registers(image_size: int = 224) -> RunConfig:
    """`paper` with four registers."""
    base = paper(image_size)
    return dataclasses.replace(
        base,
        encoder=dataclasses.replace(base.encoder, registers=4),
        provenance=Provenance(
            source="arXiv 2309.16588, Sec. 3; " + base.provenance.source,
            expected="no patch tokens of outlying norm; DINOv2 ViT-L on ImageNet-22k linear 84.3 -> 84.8 % (Table 2a)",
        ),
    )


def paper_high_resolution(image_size: int = 224) -> tuple[RunConfig, RunConfig]:
    """`paper_vit_large`, then 10,000 steps at 518 pixels with a lower rate (Sec. 4)."""
    first = paper_vit_large(image_size)
    return dataclasses.replace(first, stage="pretrain", share=0.97), higher(first, 518, Steps(10_000))


def higher(first: RunConfig, image_size: int, length: Steps) -> RunConfig:
    """Return the short stage at a higher resolution that follows a run: its schedules again, compressed (App. B)."""
    assert isinstance(first.method, DINOv2Config)
    share = length.n / first.length.n

    def shorter(duration: Duration) -> Duration:
        return Steps(round(duration.n * share)) if isinstance(duration, Steps) else duration

    lr = first.optim.lr
    temp = first.method.teacher_temp
    return dataclasses.replace(
        first,
        stage="high resolution",
        start="../stage-1",
        share=0.03,
        method=dataclasses.replace(
            first.method,
            teacher_temp=dataclasses.replace(temp, warmup=shorter(temp.warmup)),
            freeze_prototypes=shorter(first.method.freeze_prototypes),
        ),
        encoder=dataclasses.replace(first.encoder, image_size=image_size),
        optim=dataclasses.replace(
            first.optim, lr=dataclasses.replace(lr, base=lr.base / 10, warmup=shorter(lr.warmup))
        ),
        length=length,
        checkpoint_every=Steps(max(1, length.n // 10)),
        probe_every=Steps(max(1, length.n // 5)),
        provenance=dataclasses.replace(
            first.provenance,
            source=SOURCE + "; Sec. 4 and 6.6 (resolution)",
            deviations="the paper does not say by how much it lowers the rate here: a tenth.",
        ),
    )


def paper_distill(image_size: int = 224) -> RunConfig:
    """ViT-L/14 from a frozen ViT-g/14: give the teacher's finished run by --start (Sec. 5)."""
    giant = paper_vit_giant(image_size)
    assert isinstance(giant.method, DINOv2Config)
    return dataclasses.replace(
        giant,
        method=dataclasses.replace(giant.method, teacher_mode="frozen"),
        encoder=EncoderConfig(name="vit_large_patch14_dinov2", image_size=image_size, arch=Arch(layer_scale=1e-5)),
        provenance=Provenance(
            source="arXiv 2304.07193, Sec. 5 (distillation) and Table 16",
            expected="ImageNet-1k kNN 83.5 %, linear probe 86.3 % from ViT-g/14 on LVD-142M (Table 4)",
            deviations="with all patches taught at 131,072 prototypes the teacher's targets are large: "
            "--method.distilled-patches masked teaches a part of them, as facebookresearch/dinov3 does.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ViT-Tiny with small patches, 2 + 4 crops, batch 64: one GPU or a CPU, 1k to 50k images."""
    patch = scale.patch(image_size)
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="dinov2",
        method=DINOv2Config(
            prototypes=1024,
            bottleneck=128,
            patch_prototypes=1024,
            patch_bottleneck=128,
            hidden=512,
            koleo_across=True,
            teacher_temp=constant(0.04),
            momentum=cosine(0.99, 1.0),
            freeze_prototypes=Steps(0),
            patch_rate=1.0,
            global_scale=(0.25, 1.0),
            local_crops=4,
            local_size=scale.local(image_size, patch),
            local_scale=(0.1, 0.32),
            colour=0.5 if tiny else 1.0,
            blur=0.0 if tiny else 1.0,
        ),
        encoder=EncoderConfig(name="vit_tiny_patch16_224", image_size=image_size, patch_size=patch),
        optim=_adamw(1e-3, per=64, warmup=Steps(100), weight_decay=(0.04, 0.1)),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source=SOURCE + ", scaled down",
            expected="docs/results.md",
            deviations="few prototypes and local crops, a fast teacher at a constant low temperature, one rate for all "
            "layers, no stochastic depth: with few images and steps the paper's slow teacher hardly moves.",
        ),
    )


def small_registers(image_size: int = 96) -> RunConfig:
    """`small` with four registers."""
    base = small(image_size)
    return dataclasses.replace(base, encoder=dataclasses.replace(base.encoder, registers=4))


def small_distill(image_size: int = 96) -> tuple[RunConfig, RunConfig]:
    """`small` with ViT-Small, then ViT-Tiny distilled from it."""
    base = small(image_size)
    assert isinstance(base.method, DINOv2Config)
    large = dataclasses.replace(base.encoder, name="vit_small_patch16_224")
    teach = dataclasses.replace(base, stage="teacher", encoder=large, share=0.6)
    student = dataclasses.replace(
        base,
        stage="distill",
        start="../stage-1",
        share=0.4,
        method=dataclasses.replace(base.method, teacher_mode="frozen"),
    )
    return teach, student


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a two-block ViT: for tests."""
    return RunConfig(
        name="dinov2",
        method=DINOv2Config(
            prototypes=32,
            bottleneck=16,
            patch_prototypes=24,
            patch_bottleneck=12,
            hidden=32,
            koleo_across=True,
            local_crops=2,
            local_size=16,
            colour=0.5,
            blur=0.0,
            freeze_prototypes=Steps(2),
        ),
        encoder=EncoderConfig(
            name="vit_tiny_patch16_224",
            image_size=image_size,
            patch_size=8,
            drop_path=0.2,
            uniform_drop_path=True,
            drop_samples=True,
            arch=Arch(embed_dim=32, depth=2, num_heads=2, layer_scale=1e-1),
        ),
        optim=_adamw(1e-3, per=16, warmup=Steps(2), layer_decay=0.9),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _adamw(
    base: float,
    *,
    per: int = 1024,
    rule: Literal["linear", "sqrt"] = "sqrt",
    warmup: Duration,
    weight_decay: tuple[float, float] = (0.04, 0.4),
    layer_decay: float = 1.0,
) -> OptimConfig:
    return OptimConfig(
        name="adamw",
        lr=LR(base=base, per=per, rule=rule, floor=1e-6, warmup=warmup, warmup_reaches_peak=True),
        weight_decay=cosine(*weight_decay),
        layer_decay=layer_decay,
        clip=3.0,
    )


def _teacher_temp(final: float, warmup: Duration) -> Schedule:
    return Schedule(start=final, shape="constant", warmup=warmup, warmup_from=0.04, warmup_reaches_start=True)
