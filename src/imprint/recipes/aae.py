"""Recipes of the adversarial autoencoder (arXiv 1511.05644)."""

from __future__ import annotations

from imprint.core.progress import Epochs, Steps
from imprint.methods.aae import AAEConfig
from imprint.recipes import scale
from imprint.train.config import LR, EncoderConfig, OptimConfig, Provenance, RunConfig

__all__ = ["debug", "paper", "paper_mixture", "paper_swiss_roll", "small"]


def paper(image_size: int = 32) -> RunConfig:
    """Codes of eight dimensions that follow a Gaussian of deviation 5, batch 100, for MNIST."""
    return _paper(AAEConfig(), image_size)


def paper_mixture(image_size: int = 32) -> RunConfig:
    """Codes of two dimensions that follow a mixture of ten Gaussians (Fig. 2)."""
    return _paper(AAEConfig(latent=2, prior="mixture"), image_size)


def paper_swiss_roll(image_size: int = 32) -> RunConfig:
    """Codes of two dimensions that follow a swiss roll (Fig. 4)."""
    return _paper(AAEConfig(latent=2, prior="swiss_roll"), image_size)


def small(image_size: int = 96) -> RunConfig:
    """ResNet-18, codes of eight dimensions, convolutions that decode, batch 64: one GPU or a CPU, 1k to 50k images."""
    return RunConfig(
        name="aae",
        method=AAEConfig(
            latent=8,
            prior_scale=1.0,
            decoder="convolutions",
            width=32,
            discriminator_width=256,
            crop_scale=(0.5, 1.0),
            flip=0.5,
        ),
        encoder=scale.resnet18(image_size),
        optim=OptimConfig(name="adam", lr=LR(base=1e-3, per=64, rule="sqrt", warmup=Steps(50)), betas=(0.5, 0.999)),
        batch_size=64,
        length=Epochs(100),
        probe_every=Epochs(10),
        provenance=Provenance(
            source="arXiv 1511.05644, for photographs",
            expected="docs/results.md",
            deviations="convolutions that decode, codes of unit spread, a narrow discriminator, crops and flips, Adam.",
        ),
    )


def debug(image_size: int = 32) -> RunConfig:
    """A few steps of a narrow ResNet: for tests."""
    return RunConfig(
        name="aae",
        method=AAEConfig(latent=2, prior_scale=1.0, width=32, discriminator_width=32, kept_codes=64),
        encoder=scale.narrow_resnet(image_size),
        optim=OptimConfig(name="adam", lr=LR(base=1e-3, rule="none", warmup=Steps(2)), betas=(0.5, 0.999)),
        batch_size=16,
        length=Steps(8),
        checkpoint_every=Steps(4),
        log_every=1,
    )


def _paper(method: AAEConfig, image_size: int) -> RunConfig:
    return RunConfig(
        name="aae",
        method=method,
        encoder=EncoderConfig(name="resnet18", image_size=image_size, stem=scale.stem(image_size)),
        # Reconstruction at 0.01 with momentum 0.9, regularisation at 0.1 with momentum 0.1: rate / (1 - momentum) is
        # 0.1 and 0.11, so that one rate with momentum 0.9 serves both.
        optim=OptimConfig(
            name="sgd",
            lr=LR(base=0.01, rule="none", shape="milestones", milestones=(Epochs(50), Epochs(1000))),
            momentum=0.9,
        ),
        batch_size=100,
        length=Epochs(5000),
        probe_every=Epochs(50),
        provenance=Provenance(
            source="arXiv 1511.05644 and its appendix",
            expected="codes of held-out digits that fill the prior (Fig. 2); no figure for a probe",
            deviations="a ResNet-18 in place of two hidden layers; images as they are normalised, so the decoder ends "
            "without a sigmoid; one momentum for both phases.",
        ),
    )
