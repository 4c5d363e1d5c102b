"""What each process does in the tests of SupCon and KoLeo; results go into a folder as `rank-R.pt`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from imprint.dist.collectives import all_gather, all_reduce_mean, gather_with_grad
from imprint.dist.world import World, init_from_env
from imprint.losses.koleo import koleo
from imprint.losses.supcon import supcon

IMAGES = 12


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit features (A, 2, D) in float64 and labels, of all processes."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(IMAGES, 2, 6, generator=generator, dtype=torch.float64), dim=-1)
    return features, torch.randint(0, 4, (IMAGES,), generator=generator)


def losses(folder: str) -> None:
    """Compute SupCon and KoLeo on this process's images with the keys of all; save mean loss and own gradients."""
    world = init_from_env("cpu")
    torch.save(losses_of(world), Path(folder) / f"rank-{world.rank}.pt")


def losses_of(world: World) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return name -> (mean loss over processes, this process's gradient divided by the processes, as DDP would)."""
    features, labels = inputs()
    mine = labels.chunk(world.size)[world.rank]
    result = {}
    for name in ("all", "one", "unlabelled", "koleo"):
        own = features.chunk(world.size)[world.rank].clone().requires_grad_()
        gathered, offset = gather_with_grad(own)
        if name == "koleo":
            loss = koleo(own[:, 0], top_k=2, x_all=gathered[:, 0], offset=offset)
        elif name == "unlabelled":
            loss = supcon(own, features_all=gathered, offset=offset)
        else:
            loss = supcon(
                own,
                mine,
                contrast="one" if name == "one" else "all",
                features_all=gathered,
                labels_all=all_gather(mine),
                offset=offset,
            )
        loss.backward()
        assert own.grad is not None
        result[name] = (all_reduce_mean(loss), own.grad / world.size)
    return result
