"""Jigsaw: puzzles of other images are solved by what the tiles show, and not by how bright they are."""

from __future__ import annotations

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.jigsaw import Jigsaw, JigsawConfig
from imprint.recipes.book import recipe

SIDE, ROWS = 30, 32


def batch_of(step: int, kind: str) -> Batch:
    """Return noise with a round hill in the middle (every tile slopes its own way), or on one slope (all the same)."""
    noise = torch.randn(1, ROWS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(step))
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    shape = -4 * (x.square() + y.square()).sqrt() if kind == "hill" else 2 * x + 4 * y
    return Batch(views={"global": 0.3 * noise + shape}, index_B=torch.arange(ROWS) + ROWS * step)


def held_out(kind: str, normalise_tiles: bool) -> float:
    """Return the share of puzzles solved on other images after a few steps."""
    torch.manual_seed(0)
    config = recipe("jigsaw/debug").encoder
    cfg = JigsawConfig(
        permutations=8, puzzles=2, normalise_tiles=normalise_tiles, tile_width=32, fusion_width=64, dropout=0.0
    )
    method = Jigsaw(cfg, build_encoder(config.name, image_size=SIDE, stem="cifar", arch=config.arch))
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for step in range(25):
        optimizer.zero_grad()
        method(batch_of(step, kind), Progress(step, 25, 25)).loss.backward()
        optimizer.step()
    method.eval()
    found = [method.solved(batch_of(1000 + n, kind), Progress(0, 1, 1)).mean() for n in range(8)]
    return float(torch.stack(found).mean())


@pytest.mark.slow
def test_tiles_are_told_by_their_shape():
    assert held_out("hill", normalise_tiles=True) > 0.6  # 0.125 by chance


@pytest.mark.slow
def test_brightness_would_give_the_order_away():
    """On a plane slope all tiles look the same but for their brightness, which normalisation takes away."""
    assert held_out("slope", normalise_tiles=False) > 0.6
    assert held_out("slope", normalise_tiles=True) < 0.25
