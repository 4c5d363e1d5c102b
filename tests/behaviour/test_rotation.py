"""Rotation: how things stand is learned for other images, too; where nothing stands, nothing betrays a turn."""

from __future__ import annotations

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.rotation import Rotation, RotationConfig
from imprint.recipes.book import recipe

SIDE, ROWS = 16, 32


def batch_of(step: int, lit: float) -> Batch:
    """Return images of noise, lit from above."""
    noise = torch.randn(1, ROWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(step))
    light = torch.linspace(1, -1, SIDE)[:, None].expand(SIDE, SIDE)
    return Batch(views={"global": noise + lit * light}, index_B=torch.arange(ROWS))


def held_out(lit: float) -> float:
    """Return the accuracy on other images after a few steps."""
    torch.manual_seed(0)
    config = recipe("rotation/debug").encoder
    method = Rotation(RotationConfig(), build_encoder(config.name, image_size=SIDE, stem="cifar", arch=config.arch))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for step in range(25):
        optimizer.zero_grad()
        method(batch_of(step, lit), Progress(step, 25, 25)).loss.backward()
        optimizer.step()
    method.eval()
    found = [method.solved(batch_of(1000 + n, lit), Progress(0, 1, 1)).mean() for n in range(8)]
    return float(torch.stack(found).mean())


@pytest.mark.slow
def test_light_from_above_is_found_on_other_images_and_noise_tells_nothing():
    assert held_out(1.0) > 0.8
    assert held_out(0.0) == pytest.approx(0.25, abs=0.06)  # 1,024 answers: four standard errors
