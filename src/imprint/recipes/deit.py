"""Recipes of DeiT (arXiv 2012.12877): with a teacher by timm's name, with a teacher of one's own, and without."""

from __future__ import annotations

import dataclasses

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.deit import DeiTConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_plain", "paper_small", "paper_tiny", "small"]

SOURCE = "arXiv 2012.12877, Table 9 and Sec. 4 to 6; facebookresearch/deit, main.py"
DEVIATIONS = (
    "Repeated augmentation puts all three crops of an image into one batch: 344 images are 1,032 crops (the paper has "
    "1,024), and 100 passes of three crops take the place of 300 of one. How images are mixed is drawn once for a step "
    "and not for each process."
)
TEACHER = "timm:regnety_160.deit_in1k"


def paper(image_size: int = 224) -> RunConfig:
    """DeiT-B distilled from RegNetY-16GF by its decisions, 300 epochs."""
    return _paper("base", image_size, DeiTConfig(teacher=TEACHER), "83.4 % top-1 (Table 5)")


def paper_small(image_size: int = 224) -> RunConfig:
    """DeiT-S distilled from RegNetY-16GF by its decisions, 300 epochs."""
    return _paper("small", image_size, DeiTConfig(teacher=TEACHER), "81.2 % top-1 (Table 5)")


def paper_tiny(image_size: int = 224) -> RunConfig:
    """DeiT-Ti distilled from RegNetY-16GF by its decisions, 300 epochs."""
    return _paper("tiny", image_size, DeiTConfig(teacher=TEACHER), "74.5 % top-1 (Table 5)")


def paper_plain(image_size: int = 224) -> RunConfig:
    """DeiT-B from labels alone, 300 epochs."""
    return _paper("base", image_size, DeiTConfig(distillation="none"), "81.8 % top-1 (Table 5)")


def _paper(width: str, image_size: int, method: DeiTConfig, expected: str) -> RunConfig:
    token = "" if method.distillation == "none" else "_distilled"
    return RunConfig(
        name="deit",
        method=method,
        encoder=EncoderConfig(name=f"deit_{width}{token}_patch16_224", image_size=image_size, drop_path=0.1),
        optim=OptimConfig(
            name="adamw",
            # 5e-4 for 512 crops, which are 171 images of three crops.
            lr=LR(base=5e-4, per=171, floor=1e-5, warmup=Epochs(1.67), warmup_from=1e-3),
            weight_decay=constant(0.05),
        ),
        batch_size=344,
        length=Epochs(100),
        probe_every=Epochs(5),
        provenance=Provenance(source=SOURCE, expected=f"ImageNet-1k: {expected}", deviations=DEVIATIONS),
    )


def small(image_size: int = 96) -> tuple[RunConfig, RunConfig]:
    """A ResNet-18 from labels, then DeiT-Ti from it and the labels: one GPU or a CPU, 1k to 50k images."""
    light = DeiTConfig(
        distillation="none", mixup=0.0, cutmix=0.0, erasing=0.0, rand_augment=0.0, repeats=1, crop_scale=(0.35, 1.0)
    )
    provenance = Provenance(
        source=SOURCE + ", scaled down",
        expected="docs/results.md",
        deviations="a teacher trained on the same images; larger crops without erasing and mixing, which a short run "
        "has no time to profit from; one crop of every image.",
    )
    teacher = RunConfig(
        name="deit",
        stage="teacher",
        method=light,
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(30),
        probe_every=Epochs(5),
        share=0.35,
        provenance=provenance,
    )
    vit = EncoderConfig(
        name="deit_tiny_distilled_patch16_224",
        image_size=image_size,
        patch_size=scale.patch(image_size),
        drop_path=0.05,
    )
    student = dataclasses.replace(
        teacher,
        stage="student",
        start="../stage-1",
        method=dataclasses.replace(light, distillation="hard", rand_augment=5.0),
        encoder=vit,
        optim=OptimConfig(
            name="adamw",
            lr=LR(base=1e-3, per=128, rule="sqrt", warmup=Epochs(1)),
            weight_decay=constant(0.05),
        ),
        length=Epochs(100),
        share=0.65,
    )
    return teacher, student


def debug(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """A narrow ResNet, then a tiny distilled ViT, everything switched on: for tests."""
    method = DeiTConfig(distillation="none", repeats=2)
    teacher = RunConfig(
        name="deit",
        stage="teacher",
        method=method,
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="adamw", lr=LR(base=5e-4, per=32, warmup=Steps(2)), weight_decay=constant(0.05)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
    student = dataclasses.replace(
        teacher,
        stage="student",
        start="../stage-1",
        method=dataclasses.replace(method, distillation="hard"),
        encoder=scale.tiny_vit(image_size, name="deit_tiny_distilled_patch16_224", drop_path=0.1),
    )
    return teacher, student
