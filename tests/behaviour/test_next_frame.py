"""What keeps next-frame prediction in feature space from equal tokens everywhere: a slow teacher without gradient."""

from __future__ import annotations

import dataclasses

import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.core.schedules import constant
from imprint.data.batch import Batch
from imprint.methods.next_frame import NextFrame
from imprint.recipes.book import recipe

STEPS = 60


def clips(seed: int, count: int = 16, past: int = 2) -> Batch:
    """Return clips of smooth random textures that drift by a few pixels per frame."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 12, 12, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, size=64, mode="bicubic")
    frames = [wide[:, :, 8 + 3 * t : 40 + 3 * t, 8 + 2 * t : 40 + 2 * t] for t in range(past + 1)]
    return Batch(clips={"clip": torch.stack(frames, dim=1)[None]}, index_B=torch.arange(count))


def spread(**changes: object) -> float:
    """Train for a few seconds; return how far apart the tokens of the exported encoder are, 0 when all are the same."""
    torch.manual_seed(0)
    config = recipe("next_frame/debug_latent")
    settings = {f.name: getattr(config.encoder, f.name) for f in dataclasses.fields(config.encoder)}
    encoder = build_encoder(**{**settings, "channels": 3})
    method = NextFrame(dataclasses.replace(config.method, mask_ratio=0.0, **changes), encoder)
    optimizer = torch.optim.AdamW(method.backbone.parameters(), lr=2e-3, weight_decay=0.01)
    optimizer.add_param_group({"params": list(method.predictor.parameters())})
    for step in range(STEPS):
        t = Progress(step, STEPS, 10)
        optimizer.zero_grad()
        method(clips(step), t).loss.backward()
        optimizer.step()
        method.after_optimizer_step(t)
    return float(method(clips(999), Progress(STEPS, STEPS, 10)).metrics["next_frame/target_std"])


def test_tokens_stay_apart_with_the_safeguards_and_collapse_without() -> None:
    kept = spread(momentum=constant(0.99))
    through = spread(momentum=constant(0.0), stop_gradient=False)
    assert kept > 0.35, kept
    assert through < 0.2 * kept, (through, kept)
