"""Recipes of knowledge distillation (arXiv 1503.02531)."""

from __future__ import annotations

import dataclasses

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.labelled import Labelled
from imprint.methods.distill import DistillationConfig
from imprint.recipes import scale
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "features", "imagenet", "paper", "small", "small_vit"]

PAPER = "arXiv 1503.02531, Sec. 3 (MNIST)"


def paper(image_size: int = 28) -> tuple[RunConfig, RunConfig]:
    """A large network on jittered digits with dropout, and a small one on its soft targets alone (T = 20)."""
    provenance = Provenance(
        source=PAPER,
        expected="MNIST test errors: large network 67, small one on labels 146, on soft targets 74",
        deviations="ResNets with a CIFAR stem instead of two hidden layers of 1,200 and 800 units, since an encoder is "
        "a network for images; crops of at least 85 % of the area instead of shifts by two pixels; optimizer and "
        "length, of which the paper says nothing, are those of small ResNets.",
    )
    teacher = RunConfig(
        name="distill",
        stage="teacher",
        method=DistillationConfig(alpha=0.0, crop_scale=(0.85, 1.0), flip=0.0, dropout=0.5),
        encoder=scale.resnet18(image_size),
        optim=_sgd(LR(base=0.1, warmup=Epochs(1))),
        batch_size=256,
        length=Epochs(30),
        probe_every=Epochs(5),
        provenance=provenance,
    )
    student = dataclasses.replace(
        teacher,
        stage="student",
        start="../stage-1",
        method=DistillationConfig(crop="center"),
        encoder=scale.narrow_resnet(image_size),
    )
    return teacher, student


def imagenet(image_size: int = 224) -> RunConfig:
    """ResNet-34 with published weights teaches ResNet-18 beside the labels (100 epochs), as later papers compare."""
    return RunConfig(
        name="distill",
        method=DistillationConfig(teacher="timm:resnet34.tv_in1k", temperature=1.0, alpha=0.5),
        encoder=EncoderConfig(name="resnet18", image_size=image_size),
        optim=_sgd(LR(base=0.1, shape="milestones", milestones=(Epochs(30), Epochs(60), Epochs(90)))),
        batch_size=256,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 1503.02531, Sec. 2; yoshitomo-matsubara/torchdistill, kd-resnet18_from_resnet34.yaml",
            expected="ImageNet-1k top-1 71.37 % (teacher 73.3, ResNet-18 on labels 69.76)",
        ),
    )


def small(image_size: int = 96) -> tuple[RunConfig, RunConfig]:
    """ResNet-18 on 10 % of the labels teaches a ResNet of half the width on all images: one GPU or a CPU."""
    tiny = image_size <= scale.TINY
    layers = (1, 1, 1, 1) if tiny else (2, 2, 2, 2)
    narrow = dataclasses.replace(scale.resnet18(image_size), arch=Arch(layers=layers, channels=(32, 64, 128, 256)))
    return _small(scale.resnet18(image_size), narrow)


def small_vit(image_size: int = 96) -> tuple[RunConfig, RunConfig]:
    """The same teacher, and a ViT as its student: a CNN teaches what a ViT has no bias for."""
    arch = Arch(embed_dim=192, depth=6, num_heads=3)
    vit = EncoderConfig(
        name="vit_tiny_patch16_224", image_size=image_size, patch_size=scale.patch(image_size), arch=arch
    )
    return _small(scale.resnet18(image_size), vit)


def features(image_size: int = 96) -> RunConfig:
    """ResNet-18 learns the pooled vectors of any encoder (--method.teacher or --start) from images without labels."""
    return RunConfig(
        name="distill",
        method=DistillationConfig(match=("pooled",), crop_scale=(0.2, 1.0)),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=128,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 1503.02531; features: FitNets, arXiv 1412.6550, Eq. 3",
            expected="the nearest neighbours and the linear probe of the teacher's encoder",
            deviations="the last layer instead of a middle one, and in one stage.",
        ),
    )


def debug(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """A tiny teacher and a tinier student, whose teacher's answers are kept: for tests."""
    teacher = RunConfig(
        name="distill",
        stage="teacher",
        method=DistillationConfig(alpha=0.0, crop_scale=(0.5, 1.0)),
        encoder=scale.narrow_resnet(image_size),
        optim=_sgd(LR(base=0.1, warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
    student = dataclasses.replace(
        teacher,
        stage="student",
        start="../stage-1",
        method=DistillationConfig(match=("logits", "pooled"), alpha=0.5, temperature=4.0, crop="center"),
        encoder=dataclasses.replace(
            scale.narrow_resnet(image_size), arch=Arch(layers=(1, 1, 1, 1), channels=(16, 16, 16, 16))
        ),
        data=DataConfig(labelled=Labelled(share=0.5, rest="unlabelled")),
    )
    return teacher, student


def _small(large: EncoderConfig, student_encoder: EncoderConfig) -> tuple[RunConfig, RunConfig]:
    provenance = Provenance(
        source="arXiv 1503.02531, Sec. 2 and 5 (soft targets where labels are few), scaled down",
        expected="docs/results.md",
        deviations="AdamW; temperature 4, at which a teacher of few labels neither hardens its mistakes nor flattens "
        "what it knows; labels beside the soft targets where they are known.",
    )
    shared = DistillationConfig(crop_scale=(0.4, 1.0), temperature=4.0)
    teacher = RunConfig(
        name="distill",
        stage="teacher",
        method=dataclasses.replace(shared, alpha=0.0),
        encoder=large,
        data=DataConfig(labelled=Labelled(share=0.1)),
        optim=scale.adamw(),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(25),
        share=0.5,
        provenance=provenance,
    )
    student = dataclasses.replace(
        teacher,
        stage="student",
        start="../stage-1",
        method=dataclasses.replace(shared, alpha=0.9),
        encoder=student_encoder,
        data=DataConfig(labelled=Labelled(share=0.1, rest="unlabelled")),
        batch_size=128,
        length=Epochs(60),
        probe_every=Epochs(10),
    )
    return teacher, student


def _sgd(lr: LR) -> OptimConfig:
    return OptimConfig(name="sgd", lr=lr, weight_decay=constant(1e-4), momentum=0.9)
