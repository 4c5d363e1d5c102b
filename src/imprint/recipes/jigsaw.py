"""Recipes of Jigsaw (arXiv 1603.09246)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.core.schedules import constant
from imprint.methods.jigsaw import JigsawConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_1000", "small"]


def paper(image_size: int = 255) -> RunConfig:
    """ResNet-50, 2,000 permutations, 105 epochs at batch 256: the re-run that later papers compare with."""
    return RunConfig(
        name="jigsaw",
        method=JigsawConfig(permutations=2000, tile_width=1000, fusion_width=0, head_norm=True, dropout=0.0),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=_sgd(
            LR(
                base=0.1,
                warmup=Epochs(5),
                warmup_from=0.25,
                shape="milestones",
                milestones=(Epochs(30), Epochs(60), Epochs(90), Epochs(100)),
            )
        ),
        batch_size=256,
        length=Epochs(105),
        probe_every=Epochs(5),
        provenance=Provenance(
            source="arXiv 1603.09246; facebookresearch/vissl, jigsaw_8gpu_resnet.yaml (2,000 permutations)",
            expected="ImageNet-1k linear probe 46.7 % top-1 (VISSL's model zoo)",
            deviations="tiles are normalised one by one, as in the paper (the re-run does not); the crop is 255 of "
            "292 px of the whole image, as in arXiv 1901.09005.",
        ),
    )


def paper_1000(image_size: int = 255) -> RunConfig:
    """ResNet-50 with the authors' head and schedule: 1,000 permutations, 350,000 steps at batch 256."""
    return RunConfig(
        name="jigsaw",
        method=JigsawConfig(grey=0.3, channel_shift=2),
        encoder=EncoderConfig(name="resnet50", image_size=image_size),
        optim=OptimConfig(
            name="sgd",
            lr=LR(base=0.01, shape="milestones", milestones=(Steps(100_000), Steps(200_000), Steps(300_000))),
            weight_decay=constant(5e-4),
            momentum=0.9,
        ),
        batch_size=256,
        length=Steps(350_000),
        probe_every=Steps(25_000),
        provenance=Provenance(
            source="arXiv 1603.09246; MehdiNoroozi/JigsawPuzzleSolver, solver_cfn_jps and train_val_cfn_jps.prototxt",
            expected="71 % of puzzles of the paper's network solved (Table 4)",
            deviations="a ResNet-50 instead of an AlexNet whose first layer has stride 2, and flips.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, 100 permutations, batch 64, AdamW: one GPU or a CPU, 1k to 50k images."""
    tiny = image_size <= scale.TINY
    return RunConfig(
        name="jigsaw",
        method=JigsawConfig(
            permutations=100,
            spread="min",
            tile_share=0.8 if tiny else 64 / 85,
            tile_size=16 if tiny else None,
            puzzles=8,
            crop_scale=(0.5, 1.0),
            tile_width=256,
            fusion_width=512,
            head_norm=True,
            dropout=0.0,
        ),
        encoder=scale.resnet18(image_size),
        optim=scale.adamw(),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(5),
        provenance=Provenance(
            source="arXiv 1603.09246, Table 4 (fewer permutations that lie farther apart make an easier task)",
            expected="docs/results.md",
            deviations="AdamW, 100 permutations, a light head, and eight puzzles from each image's tiles in a step.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet and 24 permutations of 2 x 2 tiles: for tests."""
    return RunConfig(
        name="jigsaw",
        method=JigsawConfig(
            permutations=24,
            grid=2,
            puzzles=2,
            channel_shift=1,
            tile_width=32,
            fusion_width=64,
            head_norm=True,
            dropout=0.0,
        ),
        encoder=scale.narrow_resnet(image_size),
        optim=_sgd(LR(base=0.1, warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _sgd(lr: LR) -> OptimConfig:
    return OptimConfig(name="sgd", lr=lr, weight_decay=constant(1e-4), momentum=0.9)
