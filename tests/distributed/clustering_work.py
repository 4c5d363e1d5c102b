"""What each process of the clustering tests does; results go into a folder, `rank-R.pt` each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from imprint.core.progress import Progress, Steps
from imprint.dist.collectives import all_reduce_max, all_reduce_mean, all_reduce_sum
from imprint.dist.world import World, init_from_env
from imprint.losses.clustering import swapped_prediction
from imprint.ops.sinkhorn import sinkhorn

ROWS, WIDTH = 12, 10
CUTS = {"even": (0, 6, 12), "uneven": (0, 3, 12), "one without rows": (0, 0, 12)}


def scores_of(views: int, scale: float) -> torch.Tensor:
    """Return scores whose largest lie in the second half."""
    x = torch.randn(views, ROWS, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, ROWS // 2 :] += 0.5
    return x * scale


def codes(folder: str) -> None:
    """Balance shares of the rows, of several sizes and scales."""
    world = init_from_env("cpu")
    results = {}
    for name, cuts in CUTS.items():
        for scale in (0.3, 1e4):
            own = scores_of(2, scale)[:, cuts[world.rank] : cuts[world.rank + 1]]
            results[name, scale] = sinkhorn(own, 0.05, 3, reduce=all_reduce_sum, reduce_max=all_reduce_max)
    torch.save(results, Path(folder) / f"rank-{world.rank}.pt")


def loss(folder: str) -> None:
    """Codes and loss of half the images; gradients of the mean over processes."""
    world = init_from_env("cpu")
    leaf = scores_of(4, 0.3).chunk(world.size, dim=1)[world.rank].clone().requires_grad_()
    q = sinkhorn(leaf[:2].detach(), 0.05, 3, reduce=all_reduce_sum, reduce_max=all_reduce_max)
    value = swapped_prediction(leaf, q, 0.1)
    value.backward()
    result = {"loss": all_reduce_mean(value), "grad": leaf.grad / world.size}
    torch.save(result, Path(folder) / f"rank-{world.rank}.pt")


def several_steps(folder: str, queue: int) -> None:
    """Train through the filling of the queue and its use."""
    world = init_from_env("cpu")
    torch.save(steps(queue, world), Path(folder) / f"rank-{world.rank}.pt")


def steps(queue: int, world: World) -> dict[str, object]:
    """Take six steps on this process's rows; return losses, prototypes' gradients and the state at the end."""
    from two_processes import config_of, fixed_batch

    from imprint.backbones.build import build_encoder
    from imprint.methods.swav import SwAV
    from imprint.train.config import LR, OptimConfig
    from imprint.train.optim import build_optimizer
    from imprint.train.parallel import synchronise_norms
    from imprint.train.precision import choose_precision
    from imprint.train.step import Stepper

    base = config_of("swav")
    config = dataclasses.replace(
        base,
        method=dataclasses.replace(base.method, queue=queue, queue_from=Steps(1)),
        optim=OptimConfig(name="sgd", lr=LR(base=0.02, rule="none", shape="constant")),
    )
    torch.manual_seed(0)
    settings = {f.name: getattr(config.encoder, f.name) for f in dataclasses.fields(config.encoder)}
    method = SwAV(config.method, build_encoder(**{**settings, "channels": 3})).train()
    synchronise_norms(method, world)
    optimizer = build_optimizer(method.param_groups(), config.optim, world.device)
    stepper = Stepper(config, method, optimizer, world, choose_precision("fp32", world.device, None, False))
    rows = config.batch_size // world.size
    whole = fixed_batch(SwAV, config, 1)
    part = whole.part(world.rank * rows, (world.rank + 1) * rows)
    losses, grads = [], []
    real = optimizer.step

    def keep(*args, **kwargs):
        grad = method.prototypes.weight.grad
        grads.append(None if grad is None else grad.clone())
        return real(*args, **kwargs)

    optimizer.step = keep
    for step in range(6):
        losses.append(all_reduce_mean(stepper(part, Progress(step, 20, 4))["loss"]))
    state = {k: v.clone() for k, v in method.state_dict().items()}
    return {"losses": torch.stack(losses), "grads": grads, "state": state}
