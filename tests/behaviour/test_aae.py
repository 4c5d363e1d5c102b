"""Adversarial autoencoders (arXiv 1511.05644, Sec. 2): the adversary brings the aggregated posterior to the prior."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.aae import AAE
from imprint.ops.mmd import nearer_test, same_distribution_test
from imprint.recipes.book import recipe

STEPS = 120


def trained(images: Tensor, weight: float) -> AAE:
    """Return the method after a short training on smooth random images."""
    torch.manual_seed(0)
    cfg = dataclasses.replace(recipe("aae/debug").method, adversarial_weight=weight, discriminator_width=256)
    arch = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    method = AAE(cfg, build_encoder("resnet18", image_size=32, stem="half", arch=arch))
    groups = method.param_groups()
    optimizer = torch.optim.Adam([{"params": group.params} for group in groups], lr=1e-3)
    for step in range(STEPS):
        index = torch.randint(0, len(images), (64,))
        batch = Batch(views={"global": images[index][None]}, index_B=index)
        for objective in method.objectives:
            for group in groups:
                for parameter in group.params:
                    parameter.requires_grad_(group.moved_by(objective))
            optimizer.zero_grad()
            method(batch, Progress(step, STEPS, 10), objective).loss.backward()
            optimizer.step()
    return method.eval()


@torch.no_grad()
def codes(method: AAE, images: Tensor) -> Tensor:
    return method.encode(images, torch.arange(len(images)), 0)


def test_codes_of_held_out_images_are_nearer_to_the_prior_than_a_plain_autoencoders():
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(512, 3, 4, 4, generator=generator), size=32, mode="bilinear")
    adversarial, plain = trained(images[:384], 0.3), trained(images[:384], 0.0)
    prior = adversarial.prior(torch.arange(256), 11)
    held_out = images[384:]
    gain, p = nearer_test(codes(adversarial, held_out), codes(plain, held_out), prior, 999, generator)
    assert gain > 0.02 and p <= 0.01, (gain, p)
    distance, p_plain = same_distribution_test(codes(plain, held_out), prior, 999, generator)
    assert p_plain <= 0.01, (distance, p_plain)
