"""Recipes of the contrastive random walk (arXiv 2006.14613)."""

from __future__ import annotations

from imprint.backbones.arch import Arch
from imprint.core.progress import Epochs, Steps
from imprint.methods.random_walk import RandomWalkConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "small"]


def paper(image_size: int = 256) -> RunConfig:
    """ResNet-18 on a 7 x 7 grid of patches, clips of 4 frames, batch 20, 1.5 million steps of Adam."""
    return RunConfig(
        name="random_walk",
        method=RandomWalkConfig(patch=image_size // 4, patch_stride=image_size // 8),
        encoder=EncoderConfig(name="resnet18", image_size=image_size, stem="half"),
        # 25 epochs of 5 clips from each of 240,000 videos; the rate falls to 0.3 of it after 20.
        optim=OptimConfig(
            name="adam",
            lr=LR(base=1e-4, per=20, rule="none", shape="milestones", milestones=(Steps(1_200_000),), gamma=0.3),
        ),
        batch_size=20,
        length=Steps(1_500_000),
        checkpoint_every=Steps(10_000),
        probe_every=Steps(50_000),
        provenance=Provenance(
            source="arXiv 2006.14613; ajabri/videowalk, the training command of its README and code/utils/arguments.py",
            expected="DAVIS 2017 val J&F 67.6 (README); `imprint evaluate video --preset crw --stage -2`",
            deviations="a stem of stride 2 without pooling instead of two last stages without stride: stage -2, which "
            "label propagation reads, has a stride of 8 like theirs; zeros instead of reflections as padding (by a "
            "remark in the code it changes little, but wants a lower temperature); palindromes of one step too; "
            "every run of frames is a sample, where the code draws 5 per video.",
        ),
    )


def small(image_size: int = 96) -> RunConfig:
    """A narrow ResNet on a 7 x 7 grid of small patches, batch 4: one GPU or a CPU."""
    return RunConfig(
        name="random_walk",
        method=RandomWalkConfig(patch=max(8, image_size // 4), patch_stride=max(4, image_size // 8), stride=2),
        encoder=EncoderConfig(
            name="resnet18",
            image_size=image_size,
            stem="half",
            arch=Arch(layers=(1, 1, 1, 1), channels=(32, 64, 128, 256)),
        ),
        optim=OptimConfig(name="adam", lr=LR(base=1e-3, per=4, rule="sqrt", warmup=Steps(20))),
        batch_size=4,
        length=Epochs(20),
        checkpoint_every=Steps(100),
        probe_every=Steps(200),
        provenance=Provenance(
            source="arXiv 2006.14613, scaled down",
            expected="docs/results.md",
            deviations="frames of 96 px with patches of 24, a narrow network, a higher rate for short runs.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet on a 3 x 3 grid: for tests."""
    return RunConfig(
        name="random_walk",
        method=RandomWalkConfig(frames=3, stride=1, patch=image_size // 2, patch_stride=image_size // 4, projection=16),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="adam", lr=LR(base=1e-3, warmup=Steps(2))),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )
