"""What each process does in the tests of SupCon, BYOL, SimSiam and NNCLR; results go into a folder as `rank-R.pt`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F

from imprint.core.progress import Progress
from imprint.dist.collectives import all_gather, all_reduce_mean, all_reduce_sum, gather_with_grad
from imprint.dist.world import World, init_from_env
from imprint.losses.koleo import koleo
from imprint.losses.supcon import supcon

METHODS = ("supcon", "byol", "simsiam", "nnclr")
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


def steps(folder: str) -> None:
    """Take steps of every method on this process's part of the batch."""
    world = init_from_env("cpu")
    torch.save({name: steps_of(name, world) for name in METHODS}, Path(folder) / f"rank-{world.rank}.pt")


def steps_of(name: str, world: World, count: int = 2) -> dict[str, object]:
    """Take steps and return losses, gradients of the last, and the state after it."""
    from two_processes import config_of, fixed_batch

    from imprint.backbones.build import build_encoder
    from imprint.methods.catalog import method_class
    from imprint.train.optim import build_optimizer
    from imprint.train.parallel import synchronise_norms
    from imprint.train.precision import choose_precision
    from imprint.train.step import Stepper

    config, cls = config_of(name), method_class(name)
    torch.manual_seed(0)
    settings = {f.name: getattr(config.encoder, f.name) for f in dataclasses.fields(config.encoder)}
    method = cls(config.method, build_encoder(**{**settings, "channels": 3})).train()
    synchronise_norms(method, world)
    optimizer = build_optimizer(method.param_groups(), config.optim, world.device)
    stepper = Stepper(config, method, optimizer, world, choose_precision("fp32", world.device, None, False))
    whole = dataclasses.replace(
        fixed_batch(cls, config, 1), labels_B=torch.arange(config.batch_size) * 7 % 5 if cls.needs_labels else None
    )
    rows = config.batch_size // world.size
    part = whole.part(world.rank * rows, (world.rank + 1) * rows)
    grads: dict[str, torch.Tensor] = {}
    real = optimizer.step

    def keep(*args, **kwargs):
        grads.update({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
        return real(*args, **kwargs)

    optimizer.step = keep
    found = [all_reduce_mean(stepper(part, Progress(4 + step, 20, 4))["loss"]) for step in range(count)]
    assert all_reduce_sum(torch.ones(1)).item() == world.size
    return {"loss": found, "grads": grads, "state": {k: v.clone() for k, v in method.state_dict().items()}}
