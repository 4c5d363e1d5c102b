"""Recipes of SimCLR v2 (arXiv 2006.10029): pretrain, fine-tune on a labelled fraction, distil."""

from __future__ import annotations

import dataclasses

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.labelled import Labelled
from imprint.methods.simclr_v2 import SimCLRv2Config
from imprint.recipes import scale
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_10", "paper_152", "paper_sk", "paper_small_student", "paper_wide", "small"]

Stages = tuple[RunConfig, RunConfig, RunConfig]
SOURCE = "arXiv 2006.10029, Sec. 2 and 3.1; google-research/simclr"
DEVIATIONS = (
    "The fraction is drawn by Imprint's own seed, not TFDS's imagenet2012_subset. timm has no ResNet of width "
    "2 or 3 with selective kernels: its skresnet18, skresnet34, skresnet50 and skresnext50_32x4d (ratio 1/16) and "
    "wide_resnet50_2, wide_resnet101_2 (twice the width inside the blocks only) stand in for them."
)


def paper(image_size: int = 224) -> tuple[RunConfig, RunConfig, RunConfig]:
    """ResNet-50 on 1 % of the labels, distilled into itself, as in the paper (800 + 60 + 400 epochs)."""
    return _paper(image_size, "resnet50", 0.01, expected="1 % of labels: fine-tuned 57.9 % (Table 1)")


def paper_10(image_size: int = 224) -> tuple[RunConfig, RunConfig, RunConfig]:
    """ResNet-50 on 10 % of the labels (30 epochs of fine-tuning)."""
    return _paper(image_size, "resnet50", 0.1, expected="10 % of labels: fine-tuned 68.4 % (Table 1)")


def paper_152(image_size: int = 224) -> tuple[RunConfig, RunConfig, RunConfig]:
    """ResNet-152, distilled into itself, on 1 % of the labels."""
    return _paper(image_size, "resnet152", 0.01, expected="1 % of labels: fine-tuned 64.0 % (Table 1)")


def paper_wide(image_size: int = 224) -> tuple[RunConfig, RunConfig, RunConfig]:
    """Wide ResNet-50, distilled into itself, on 1 % of the labels; the lower fine-tuning rate of wide networks."""
    return _paper(image_size, "wide_resnet50_2", 0.01, finetune_rate=0.002)


def paper_sk(image_size: int = 224) -> tuple[RunConfig, RunConfig, RunConfig]:
    """ResNet-50 with selective kernels, distilled into itself, on 1 % of the labels."""
    return _paper(
        image_size, "skresnet50", 0.01, finetune_rate=0.002, expected="1 % of labels: fine-tuned 64.5 % (Table 1)"
    )


def paper_small_student(image_size: int = 224) -> tuple[RunConfig, RunConfig, RunConfig]:
    """ResNet-152 distilled into ResNet-50 on 1 % of the labels, at temperature 1."""
    first, second, third = _paper(image_size, "resnet152", 0.01)
    student = dataclasses.replace(third.encoder, name="resnet50")
    method = SimCLRv2Config(stage="distill", distill_temperature=1.0)
    provenance = Provenance(
        source=SOURCE,
        expected="1 % of labels: ResNet-50 73.9 % from a ResNet-152 of width 3 with selective kernels (Table 3)",
        deviations=DEVIATIONS,
    )
    return first, second, dataclasses.replace(third, encoder=student, method=method, provenance=provenance)


def _paper(image_size: int, encoder: str, share: float, finetune_rate: float = 0.005, expected: str = "") -> Stages:
    backbone = EncoderConfig(name=encoder, image_size=image_size)
    provenance = Provenance(source=SOURCE, expected=expected, deviations=DEVIATIONS)

    def large(epochs: int) -> OptimConfig:
        # 0.1 sqrt(batch), linear warm-up over the first 5 % of the epochs, cosine.
        lr = LR(base=0.1, per=1, rule="sqrt", warmup=Epochs(0.05 * epochs))
        return OptimConfig(name="lars", lars="simclr", lr=lr, weight_decay=constant(1e-4))

    pretrain = RunConfig(
        name="simclr_v2",
        stage="pretrain",
        method=SimCLRv2Config(stage="pretrain"),
        encoder=backbone,
        optim=large(800),
        batch_size=4096,
        length=Epochs(800),
        probe_every=Epochs(20),
        share=0.65,
        provenance=provenance,
    )
    finetune = dataclasses.replace(
        pretrain,
        stage="finetune",
        start="../stage-1",
        method=SimCLRv2Config(stage="finetune"),
        data=DataConfig(labelled=Labelled(share=share)),
        optim=OptimConfig(name="lars", lars="simclr", lr=LR(base=finetune_rate, per=1, rule="sqrt")),
        batch_size=1024,
        length=Epochs(60 if share < 0.1 else 30),
        probe_every=Epochs(10),
        share=0.05,
    )
    distill = dataclasses.replace(
        pretrain,
        stage="distill",
        start="../stage-2",
        method=SimCLRv2Config(stage="distill"),
        data=DataConfig(labelled=Labelled(share=share, rest="unlabelled")),
        optim=large(400),
        length=Epochs(400),
        share=0.3,
    )
    return pretrain, finetune, distill


def small(image_size: int = 96) -> tuple[RunConfig, RunConfig, RunConfig]:
    """ResNet-18 on 10 % of the labels, AdamW: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    shared = SimCLRv2Config(
        temperature=0.5 if tiny else 0.2,
        colour=0.5 if tiny else 1.0,
        blur=0.0 if tiny else 0.5,
        crop_scale=(0.2, 1.0),
        distill_temperature=1.0,
    )
    adam = scale.adamw()
    provenance = Provenance(
        source=SOURCE + "; CIFAR-10 settings: arXiv 2002.05709, App. B.9",
        expected="docs/results.md",
        deviations="AdamW instead of LARS and crops of at least 20 % of the area: both learn faster in short runs at a "
        "small batch; distillation at temperature 1, since 0.1 hardens the few-label teacher's mistakes.",
    )
    pretrain = RunConfig(
        name="simclr_v2",
        stage="pretrain",
        method=shared,
        encoder=scale.resnet18(image_size),
        optim=adam,
        batch_size=128,
        length=Epochs(200),
        probe_every=Epochs(10),
        share=0.65,
        provenance=provenance,
    )
    finetune = dataclasses.replace(
        pretrain,
        stage="finetune",
        start="../stage-1",
        method=dataclasses.replace(shared, stage="finetune"),
        data=DataConfig(labelled=Labelled(share=0.1)),
        optim=dataclasses.replace(adam, lr=LR(base=5e-4, per=32, rule="sqrt"), weight_decay=constant(0.0)),
        batch_size=32,
        length=Epochs(30),
        probe_every=Epochs(10),
        share=0.05,
    )
    distill = dataclasses.replace(
        pretrain,
        stage="distill",
        start="../stage-2",
        method=dataclasses.replace(shared, stage="distill"),
        data=DataConfig(labelled=Labelled(share=0.1, rest="unlabelled")),
        length=Epochs(100),
        share=0.3,
    )
    return pretrain, finetune, distill


def debug(image_size: int = 32) -> tuple[RunConfig, RunConfig, RunConfig]:
    """Three tiny stages with a memory of keys: for tests."""
    shared = SimCLRv2Config(temperature=0.5, colour=0.5, blur=0.0, projection=16, memory=64, momentum=0.9)
    pretrain = RunConfig(
        name="simclr_v2",
        stage="pretrain",
        method=shared,
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="lars", lars="simclr", lr=LR(base=0.1, per=1, rule="sqrt", warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
    finetune = dataclasses.replace(
        pretrain,
        stage="finetune",
        start="../stage-1",
        method=dataclasses.replace(shared, stage="finetune"),
        data=DataConfig(labelled=Labelled(share=0.5)),
        optim=OptimConfig(name="lars", lars="simclr", lr=LR(base=0.005, per=1, rule="sqrt")),
    )
    distill = dataclasses.replace(
        pretrain,
        stage="distill",
        start="../stage-2",
        method=dataclasses.replace(shared, stage="distill", alpha=0.5),
        data=DataConfig(labelled=Labelled(share=0.5, rest="unlabelled")),
    )
    return pretrain, finetune, distill
