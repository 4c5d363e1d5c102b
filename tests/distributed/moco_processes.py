"""What each of the processes of test_moco does; results go into a folder, `rank-R.pt` each."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from imprint.dist.collectives import gather_with_grad
from imprint.dist.world import World, init_from_env
from imprint.losses.info_nce import info_nce, mocov3_loss
from imprint.nn.split_norm import average_running_, encode_keys, split_norms_

ROWS, WIDTH = 8, 6


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and keys of the whole batch."""
    torch.manual_seed(0)
    return torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)


def info_nce_of(q: torch.Tensor, k: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return losses and gradients of these rows, the keys gathered; keys of MoCo v3 take no gradient."""
    q, k = q.clone().requires_grad_(), k.clone().requires_grad_()
    keys, offset = gather_with_grad(k)
    loss = info_nce(q, k, 0.2, k_all=keys, offset=offset)
    grad_q, grad_k = torch.autograd.grad(loss, (q, k))
    keys, offset = gather_with_grad(k.detach())
    v3 = mocov3_loss(q, 2 * q, k, k, 0.2, k1_all=keys, k2_all=keys, offset=offset)
    return {
        "loss": loss.detach(), "grad_q": grad_q, "grad_k": grad_k,
        "v3_loss": v3.detach(), "v3_grad": torch.autograd.grad(v3, q)[0],
    }  # fmt: skip


def info_nce_whole() -> dict[str, torch.Tensor]:
    """One process, the whole batch."""
    return info_nce_of(*embeddings())


def info_nce_parts(folder: str) -> None:
    """Each process its half."""
    world = init_from_env("cpu")
    q, k = (x.chunk(world.size)[world.rank] for x in embeddings())
    torch.save(info_nce_of(q, k), Path(folder) / f"rank-{world.rank}.pt")


class Pooled(nn.Module):
    """A convolution with a batch norm, pooled: (1, B, 3, H, W) -> (1, B, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return self.net(views[0]).mean((2, 3))[None]


def keys_of(world: World, groups: int = 4) -> dict[str, object]:
    """Encode this process's rows of a fixed batch with shuffled groups, then once more without."""
    torch.manual_seed(0)
    network = split_norms_(Pooled(), groups)
    views = torch.randn(1, ROWS, 3, 6, 6) * torch.arange(1.0, ROWS + 1).view(1, -1, 1, 1, 1)
    own = views.chunk(world.size, dim=1)[world.rank]
    mine, everyone = encode_keys(network, own, 3)
    out = network(own)[0].detach()
    average_running_(network)
    return {"own": mine, "all": everyone, "out": out, "state": dict(network.state_dict())}


def shuffled_keys(folder: str) -> None:
    """Each process its half."""
    world = init_from_env("cpu")
    torch.save(keys_of(world), Path(folder) / f"rank-{world.rank}.pt")


def three_groups(folder: str) -> None:
    """Two processes cannot hold three groups."""
    keys_of(init_from_env("cpu"), groups=3)
