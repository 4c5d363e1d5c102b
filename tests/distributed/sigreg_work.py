"""What each process of the tests of SIGReg and CAPI's clustering does; results go into a folder, `rank-R.pt` each."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from imprint.dist.collectives import all_reduce_max, all_reduce_mean, all_reduce_sum
from imprint.dist.world import init_from_env
from imprint.losses.capi import streamed_clustering
from imprint.losses.sigreg import random_directions, sigreg

SAME = {"reduce": lambda x: x, "processes": 1}


def embeddings() -> torch.Tensor:
    """Return views whose halves of the batch are of different distributions."""
    z = torch.randn(3, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z[:, 6:] = z[:, 6:] * 2 + 0.5
    return z


def gaussian(z: torch.Tensor, exchange: dict) -> dict[str, torch.Tensor]:
    """Return SIGReg and the gradient of some rows."""
    leaf = z.clone().requires_grad_()
    value = sigreg(leaf, random_directions(6, 40, 3, torch.device("cpu")), **exchange)
    value.backward()
    return {"value": value.detach(), "grad": leaf.grad}


def sigreg_of_halves(folder: str) -> None:
    """SIGReg of this process's half."""
    world = init_from_env("cpu")
    half = embeddings().chunk(world.size, dim=1)[world.rank]
    result = gaussian(half, {"reduce": all_reduce_mean, "processes": world.size})
    result["grad"] = result["grad"] / world.size  # DDP averages
    torch.save(result, Path(folder) / f"rank-{world.rank}.pt")


def clustering(u: torch.Tensor, places: torch.Tensor, positionwise: bool, **exchange) -> dict[str, torch.Tensor]:
    """Return loss, assignments and gradients of some images' patches."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 6, dtype=torch.float64, generator=generator).requires_grad_()
    bias = torch.randn(8, dtype=torch.float64, generator=generator).requires_grad_()
    settings = {"target_temp": 0.06, "prediction_temp": 0.12, "iterations": 3, "positionwise": positionwise}
    loss, targets = streamed_clustering(u, weight, bias, places, **settings, **exchange)
    loss.backward()
    return {"loss": loss.detach(), "targets": targets, "weight": weight.grad, "bias": bias.grad}


def patches() -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit patches, position first, and the places to predict."""
    u = F.normalize(embeddings().repeat(2, 1, 1), dim=-1)
    return u, torch.arange(24).view(12, 2) % 6


def clustering_of_halves(folder: str, positionwise: bool) -> None:
    """Clustering of this process's half of the images."""
    world = init_from_env("cpu")
    u, places = patches()
    half, own = u.chunk(world.size, dim=1)[world.rank], places.chunk(world.size)[world.rank]
    result = clustering(half, own, positionwise, reduce=all_reduce_sum, reduce_max=all_reduce_max)
    for name in ("loss", "weight", "bias"):
        result[name] = all_reduce_mean(result[name])
    torch.save(result, Path(folder) / f"rank-{world.rank}.pt")
