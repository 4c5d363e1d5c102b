"""Recipes of Noisy Student (arXiv 1911.04252): a teacher, and rounds of students that are the next one's teacher."""

from __future__ import annotations

import dataclasses

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.data.labelled import Labelled
from imprint.methods.noisy_student import NoisyStudentConfig
from imprint.recipes import scale
from imprint.train.config import LR, DataConfig, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_b0", "paper_b7", "small", "small_round"]

SOURCE = "arXiv 1911.04252, Sec. 3.1 and 3.2; google-research/noisystudent"
DEVIATIONS = (
    "RandAugment's magnitude ends at 10, while the code goes on to 27 on the same scale (rotations of 81 degrees); "
    "RMSprop is torch's (epsilon outside of the root, taken as the root of the code's 0.001; the rate outside of the "
    "momentum); one image size for all rounds and epochs: no larger one in the last epochs (Sec. 3.2)."
)


def paper(image_size: int = 475) -> tuple[RunConfig, RunConfig, RunConfig, RunConfig]:
    """EfficientNet-B7, then L2 three times, at 14, 14 and 28 unlabelled images for each labelled one (Sec. 3.2)."""
    teacher = _stage("tf_efficientnet_b7", image_size, "teacher", 0.5, 350, 0.0)
    rounds = [
        dataclasses.replace(
            _stage("tf_efficientnet_l2", image_size, "student", 0.5, 350, ratio), start=f"../stage-{n}", share=4.0
        )
        for n, ratio in enumerate((14.0, 14.0, 28.0), 1)
    ]
    expected = "ImageNet-1k 88.4 % top-1 with 130M images of JFT (Table 2); trained for 6 days on 2048 TPU v3 cores"
    provenance = Provenance(source=SOURCE, expected=expected, deviations=DEVIATIONS)
    first, second, third, fourth = (
        dataclasses.replace(stage, provenance=provenance, stage=name)
        for stage, name in zip([teacher, *rounds], ("teacher", "student 1", "student 2", "student 3"), strict=True)
    )
    return first, second, third, fourth


def paper_b0(image_size: int = 224) -> tuple[RunConfig, RunConfig]:
    """EfficientNet-B0 taught by itself, one unlabelled image for each labelled one, 700 epochs (Table 6)."""
    return _own_teacher("tf_efficientnet_b0", image_size, 0.2, 700, 1.0, 0, "78.1 to 78.8 %")


def paper_b7(image_size: int = 600) -> tuple[RunConfig, RunConfig]:
    """EfficientNet-B7 taught by itself, three unlabelled images for each labelled one (Sec. 4.1)."""
    return _own_teacher("tf_efficientnet_b7", image_size, 0.5, 350, 3.0, 2, "85.0 to 86.9 %")


def _own_teacher(
    encoder: str, image_size: int, dropout: float, epochs: int, ratio: float, operations: int, expected: str
) -> tuple[RunConfig, RunConfig]:
    teacher = _stage(encoder, image_size, "teacher", dropout, epochs, 0.0, operations)
    student = _stage(encoder, image_size, "student", dropout, epochs, ratio, operations)
    provenance = Provenance(
        source=f"{SOURCE}, train_offline.sh", expected=f"ImageNet-1k top-1 {expected}", deviations=DEVIATIONS
    )
    return (
        dataclasses.replace(teacher, provenance=provenance),
        dataclasses.replace(student, provenance=provenance, start="../stage-1", share=1.0 + ratio),
    )


def _stage(
    encoder: str, image_size: int, stage: str, dropout: float, epochs: int, ratio: float, operations: int = 2
) -> RunConfig:
    """A network of the code's family, with the code's optimizer."""
    every = 2.4 * epochs / 350  # x 0.97 every 2.4 epochs of 350, 4.8 of 700
    lr = LR(
        base=0.016,
        per=round(256 * (1.0 + ratio)),  # of labelled images
        warmup=Epochs(5),
        shape="milestones",
        milestones=tuple(Epochs(round(every * n, 3)) for n in range(1, int(epochs / every) + 1)),
        gamma=0.97,
    )
    method = NoisyStudentConfig(dropout=dropout, operations=operations, magnitude=10.0)
    if stage == "student":
        method = dataclasses.replace(method, stage="student", ratio=ratio)
    return RunConfig(
        name="noisy_student",
        stage=stage,
        method=method,
        encoder=EncoderConfig(name=encoder, image_size=image_size, drop_path=0.2),
        optim=OptimConfig(
            name="rmsprop", lr=lr, weight_decay=constant(1e-5), momentum=0.9, betas=(0.9, 0.9), eps=0.001**0.5
        ),
        batch_size=round(2048 * (1.0 + ratio)),
        length=Epochs(epochs),
        probe_every=Epochs(10),
    )


def small(image_size: int = 96) -> tuple[RunConfig, RunConfig, RunConfig]:
    """ResNet-18, two rounds on 10 % of the labels, AdamW: one GPU or a CPU, 1k to 50k images."""
    shared = NoisyStudentConfig(
        crop_scale=(0.4, 1.0), dropout=0.1, magnitude=6.0, spread=0.5, average=0.999, per_class=0
    )
    provenance = Provenance(
        source=SOURCE + ", local_scripts/svhn",
        expected="docs/results.md",
        deviations="AdamW, milder crops and operations: they learn faster in short runs; no stochastic depth in a "
        "network of eight blocks; classes are balanced to the largest one.",
    )
    teacher = RunConfig(
        name="noisy_student",
        stage="teacher",
        method=shared,
        encoder=scale.resnet18(image_size),
        data=DataConfig(labelled=Labelled(share=0.1)),
        optim=scale.adamw(),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(20),
        share=0.3,
        provenance=provenance,
    )
    student = dataclasses.replace(
        teacher,
        stage="student 1",
        start="../stage-1",
        method=dataclasses.replace(shared, stage="student", ratio=3.0),
        data=DataConfig(labelled=Labelled(share=0.1, rest="unlabelled")),
        batch_size=256,
        length=Epochs(100),
        share=1.0,
    )
    again = dataclasses.replace(student, stage="student 2", start="../stage-2")
    return teacher, student, again


def small_round(image_size: int = 96) -> tuple[RunConfig, RunConfig]:
    """`small` with one round: a teacher and its student."""
    return small(image_size)[:2]


def debug(image_size: int = 32) -> tuple[RunConfig, RunConfig]:
    """A teacher and a student of a few steps: for tests."""
    shared = NoisyStudentConfig(confidence=0.0, per_class=12, average=0.9, operations=1)
    teacher = RunConfig(
        name="noisy_student",
        stage="teacher",
        method=shared,
        encoder=scale.narrow_resnet(image_size),
        data=DataConfig(labelled=Labelled(share=0.5)),
        optim=OptimConfig(name="adamw", lr=LR(base=1e-3, rule="none", warmup=Steps(2)), weight_decay=constant(1e-4)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
    student = dataclasses.replace(
        teacher,
        stage="student",
        start="../stage-1",
        method=dataclasses.replace(shared, stage="student", ratio=1.0),
        data=DataConfig(labelled=Labelled(share=0.5, rest="unlabelled")),
    )
    return teacher, student
