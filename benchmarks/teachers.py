r"""What a teacher gives on CIFAR-10: a student with and without one, at equal steps, by the accuracy of its classifier.

    python benchmarks/cifar.py prepare --source ../shared/data/cifar10 --out data/cifar10
    python benchmarks/teachers.py deit --data data/cifar10 --out runs/teachers --teacher-steps 1500 --steps 2000
    python benchmarks/teachers.py distill --data data/cifar10 --out runs/teachers --teacher-steps 1000 --steps 300 \
        --labels 0.01

`deit`: a CNN taught by labels, then a small ViT taught by it and by labels (hard), and the same ViT by labels alone,
all on `--images` of the training images. `distill`: a CNN on a tenth of the labels, then one of half the width on a
share `--labels` of them, alone and with the teacher's answers on all images. Finished arms are taken as they are.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from imprint.backbones.arch import Arch
from imprint.core.progress import Steps
from imprint.data.labelled import Labelled
from imprint.data.sources import Source, open_source
from imprint.recipes.book import stages_of
from imprint.train.config import DataConfig, EncoderConfig, RunConfig
from imprint.train.entry import pretrain_run
from imprint.train.run import Run

CNN = (32, 64, 128, 256)
VIT = Arch(embed_dim=128, depth=4, num_heads=4)


def cnn(channels: tuple[int, ...]) -> EncoderConfig:
    """Return a ResNet of four blocks for 32 pixels."""
    arch = Arch(layers=(1, 1, 1, 1), channels=channels)
    return EncoderConfig(name="resnet18", image_size=32, stem="half", arch=arch)


def trained(config: RunConfig, folder: Path, source: Source | None = None) -> Run:
    """Return the run in a folder, trained first where it is not there, and print what its classifier is worth."""
    run = (
        Run.open(folder) if (folder / "encoder.safetensors").is_file() else pretrain_run(config, folder, source=source)
    )
    scores = [(m["step"], m["probe/classifier_top1"]) for m in run.metrics() if "probe/classifier_top1" in m]
    print(folder.name, ", ".join(f"step {step}: {score:.1f} %" for step, score in scores), flush=True)
    return run


def shared(args: argparse.Namespace, steps: int) -> dict[str, object]:
    """Return the settings that all arms have in common."""
    return {
        "length": Steps(steps),
        "probe_every": Steps(max(1, steps // 2)),
        "checkpoint_every": Steps(steps),
        "seed": args.seed,
        "workers": 1,
        "device": "cpu",
    }


def with_warmup(config: RunConfig, steps: int) -> RunConfig:
    """Return a configuration whose warm-up is an eighth of the run, at most 200 steps."""
    lr = replace(config.optim.lr, warmup=Steps(min(200, steps // 8)))
    return replace(config, optim=replace(config.optim, lr=lr))


def deit(args: argparse.Namespace) -> None:
    """Compare a taught ViT with one that has labels only."""
    teacher, student = stages_of("deit/small", image_size=32)
    data = DataConfig(train=(f"{args.data}/train",), val=f"{args.data}/test")
    whole = open_source(data.train)
    rows = np.sort(np.random.default_rng(0).permutation(len(whole))[: args.images])
    first = args.out / f"deit-teacher-{args.seed}"
    settings = shared(args, args.teacher_steps) | {"data": data, "probe_images": 3000, "stage": "", "start": None}
    config = replace(with_warmup(teacher, args.teacher_steps), encoder=cnn(CNN), **settings)
    trained(config, first, whole.subset(rows))
    for arm in ("hard", "none"):
        settings = shared(args, args.steps) | {"data": data, "probe_images": 3000, "stage": ""}
        config = replace(
            with_warmup(student, args.steps),
            encoder=replace(student.encoder, arch=VIT),
            method=replace(student.method, distillation=arm),
            start=None if arm == "none" else str(first.resolve()),
            **settings,
        )
        trained(config, args.out / f"deit-{arm}-{args.seed}", whole.subset(rows))


def distill(args: argparse.Namespace) -> None:
    """Compare a student on few labels with one that a teacher helps on all images."""
    teacher, student = stages_of("distill/small", image_size=32)

    def data(share: float, rest: str) -> DataConfig:
        part = Labelled(share=share, rest=rest)
        return DataConfig(train=(f"{args.data}/train",), val=f"{args.data}/test", labelled=part)

    first = args.out / f"distill-teacher-{args.seed}"
    settings = shared(args, args.teacher_steps) | {"probe_images": 2000, "stage": "", "start": None}
    trained(replace(teacher, encoder=cnn(CNN), data=data(0.1, "drop"), **settings), first)
    narrow = cnn(tuple(width // 2 for width in CNN))
    settings = shared(args, args.steps) | {"probe_images": 2000, "stage": "", "encoder": narrow, "batch_size": 128}
    alone = replace(teacher, data=data(args.labels, "drop"), start=None, **settings)
    taught = replace(student, data=data(args.labels, "unlabelled"), start=str(first.resolve()), **settings)
    trained(alone, args.out / f"distill-alone-{args.labels:g}-{args.seed}")
    trained(taught, args.out / f"distill-taught-{args.labels:g}-{args.seed}")


def main() -> None:
    """Run one comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("deit", "distill"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--labels", type=float, default=0.01)
    parser.add_argument("--teacher-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    {"deit": deit, "distill": distill}[args.what](args)


if __name__ == "__main__":
    main()
