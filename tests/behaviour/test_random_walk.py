"""The random walk learns what stays the same over time; where nothing does, it learns to follow nothing.

Objects keep their colour while they move, under stripes that change from frame to frame. Nothing but time tells colour
and stripes apart: to an untrained network both are looks, and it is led astray by the stripes.

Shapes: B clips, T frames, G x G objects of P x P pixels, one in each patch, N = G^2 of them, S = T - 1 steps.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.losses.random_walk import transitions
from imprint.methods.random_walk import RandomWalk
from imprint.recipes.book import recipe

FRAMES, GRID, PATCH = 3, 3, 12
STEPS, CLIPS = 120, 6
STRIPES = 2.0


def clips(seed: int, count: int = CLIPS, *, moving: bool = True) -> Batch:
    """Return clips of objects that move on by one patch per frame; without `moving`, other objects in every frame."""
    generator = torch.Generator().manual_seed(seed)
    each = (count, FRAMES, GRID, GRID)
    colour_BTGG3 = torch.randn(*each, 3, generator=generator)
    if moving:
        colour_BTGG3 = torch.stack([colour_BTGG3[:, 0].roll(t, 2) for t in range(FRAMES)], 1)
    angle, phase, pitch = torch.rand(3, *each, 1, 1, generator=generator)
    row, column = torch.arange(PATCH)[:, None], torch.arange(PATCH)
    along = column * (math.pi * angle).cos() + row * (math.pi * angle).sin()
    wave_BTGGPP = ((0.5 + pitch) * along + 2 * math.pi * phase).cos()
    paint_BTGG3 = STRIPES * F.normalize(torch.randn(*each, 3, generator=generator), dim=-1)
    objects = colour_BTGG3[..., None, None] + paint_BTGG3[..., None, None] * wave_BTGGPP[:, :, :, :, None]
    frames = objects.permute(0, 1, 4, 2, 5, 3, 6).reshape(count, FRAMES, 3, GRID * PATCH, GRID * PATCH)
    frames = frames + 0.1 * torch.randn(frames.shape, generator=generator)
    return Batch(clips={"walk": frames[None]}, index_B=torch.arange(count) + count * seed)


@torch.no_grad()
def followed(method: RandomWalk) -> float:
    """Return the share of objects in new moving clips whose likeliest step goes where they went; chance is 1 / 9."""
    batch = clips(100_000, 64)
    method.eval()
    frames = batch.clips["walk"][0]
    nodes_BTND = method.walkable(frames, method._boxes(frames, batch.index_B, Progress(0, 1, 1)))
    forward_BSNN, _ = transitions(nodes_BTND, method.cfg.temperature)
    went_N = torch.arange(GRID * GRID).view(GRID, GRID).roll(-1, 1).flatten()  # from column c to c + 1
    return float((forward_BSNN.argmax(-1) == went_N).float().mean())


def trained(seed: int, steps: int, *, moving: bool = True) -> RandomWalk:
    """Return a method after so many steps, always from the same start."""
    torch.manual_seed(seed)
    config = recipe("random_walk/debug")
    encoder = build_encoder("resnet18", image_size=GRID * PATCH, stem="cifar", arch=config.encoder.arch)
    plain = {"patch": PATCH, "patch_stride": PATCH, "jitter": (1.0, 1.0), "edge_dropout": 0.0, "temperature": 0.07}
    method = RandomWalk(dataclasses.replace(config.method, **plain), encoder)
    optimizer = torch.optim.Adam(method.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.zero_grad()
        method(clips(10_000 * seed + step, moving=moving), Progress(step, steps, steps)).loss.backward()
        optimizer.step()
    return method


def test_a_walker_follows_new_objects_when_it_saw_others_move_and_not_when_frames_were_unrelated() -> None:
    untrained, moving = followed(trained(0, 0)), followed(trained(0, STEPS))
    unrelated = followed(trained(0, STEPS, moving=False))
    found = f"untrained {untrained:.3f}, moving {moving:.3f}, unrelated {unrelated:.3f}"
    assert moving > 0.75 and moving > untrained + 0.2, found
    assert unrelated < untrained + 0.05, found
