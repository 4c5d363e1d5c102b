"""Barlow Twins, VICReg and W-MSE over two real processes equal one, where the batch is smaller than D and where not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from imprint.dist.world import World

ROWS = 12
WIDTHS = (5, 12, 40)  # below, at and above the rows of the whole batch
NAMES = ("barlow_twins", "vicreg", "w_mse")


def whole(width: int) -> tuple[Tensor, Tensor]:
    """Return both branches of the full batch; the halves differ in mean and spread."""
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(ROWS, width, generator=generator, dtype=torch.float64)
    y = x + 0.5 * torch.randn(ROWS, width, generator=generator, dtype=torch.float64)
    x[ROWS // 2 :] = x[ROWS // 2 :] * 2 + 1
    return x, y


def losses(world: World) -> dict[str, dict[str, object]]:
    """Return each loss's terms and the gradients of this process's rows."""
    from imprint.dist.collectives import all_gather, all_reduce_sum, gather_with_grad
    from imprint.losses.barlow_twins import barlow_twins
    from imprint.losses.redundancy import Peers
    from imprint.losses.vicreg import vicreg
    from imprint.losses.w_mse import positive_distance
    from imprint.ops.whitening import whiten

    peers = Peers(count=world.size, rank=world.rank, gather=all_gather, total=all_reduce_sum)
    perms = torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))[None]

    def w_mse(x: Tensor, y: Tensor) -> tuple[Tensor]:
        gathered = gather_with_grad(torch.stack([x, y], 1)[..., :3])[0].transpose(0, 1)
        return (positive_distance(whiten(gathered, perms, size=6)),)

    calls = {
        "barlow_twins": lambda x, y: barlow_twins(x, y, 0.1, peers=peers),
        "vicreg": lambda x, y: vicreg(x, y, peers=peers),
        "w_mse": w_mse,
    }
    out: dict[str, dict[str, object]] = {}
    for width in WIDTHS:
        for name, call in calls.items():
            x, y = (z.chunk(world.size)[world.rank].clone().requires_grad_() for z in whole(width))
            terms = call(x, y)
            terms[0].backward()
            out[f"{name}/{width}"] = {"terms": torch.stack([t.detach() for t in terms]), "x": x.grad, "y": y.grad}
    return out


def worker(folder: str) -> None:
    """Compute the losses on this process's half."""
    from imprint.dist.world import init_from_env

    world = init_from_env("cpu")
    torch.save(losses(world), Path(folder) / f"rank-{world.rank}.pt")


def test_losses_and_gradients_equal_one_process(work, in_two):
    one, two = losses(World()), in_two(worker)
    for name, expected in one.items():
        mean = (two[0][name]["terms"] + two[1][name]["terms"]) / 2
        torch.testing.assert_close(mean, expected["terms"], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        for branch in ("x", "y"):
            # What DDP's average makes of it: the sum over processes, over their number.
            found = torch.cat([rank[name][branch] for rank in two]) / 2
            torch.testing.assert_close(
                found, expected[branch], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )
