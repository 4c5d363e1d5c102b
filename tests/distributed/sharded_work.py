"""What each of two processes does in the tests of sharded optimizer state and of streams."""

from __future__ import annotations

from pathlib import Path

import torch

from imprint.core.schedules import constant
from imprint.dist.collectives import barrier
from imprint.dist.world import init_from_env
from imprint.methods.base import split_decay
from imprint.train.config import LR, OptimConfig
from imprint.train.optim import build_optimizer, load_optimizer, optimizer_tensors, set_rates
from imprint.train.sharded import ShardedOptimizer, gathered

OPTIMIZERS = ("adamw", "sgd", "lars")


def network(seed: int = 0) -> torch.nn.Module:
    """Return layers of several sizes, one of them frozen, a convolution channels last."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last),
        torch.nn.BatchNorm2d(8),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 40),
        torch.nn.Linear(40, 24),
        torch.nn.Linear(24, 4),
    )
    net[5].requires_grad_(False)
    return net


def optimizer_of(net, name: str, shard):
    config = OptimConfig(name=name, lr=LR(base=0.1), weight_decay=constant(0.1), lars="larc", adapt_all=name == "lars")
    return build_optimizer(split_decay(net.named_parameters()), config, torch.device("cpu"), shard=shard)


def steps(net, optimizer, first: int, last: int) -> None:
    """Take steps with gradients that all processes share, a changing rate, and one gradient missing at first."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                if step == 0 and name == "4.weight":
                    parameter.grad = None
        set_rates(optimizer, 0.1 / (1 + step), 0.1, 0.05 * step)
        optimizer.step()


def state_bytes(optimizer) -> int:
    """Return the bytes of state that this process holds."""
    return sum(v.nbytes for k, v in optimizer_tensors(optimizer).items() if not k.startswith("step/"))


def optimizers(folder: str) -> None:
    """Compare sharded with whole, then go on from the gathered state, sharded and whole."""
    world = init_from_env("cpu")
    results = {}
    for name in OPTIMIZERS:
        nets = {kind: network() for kind in ("whole", "sharded", "again", "unsharded")}
        shard = (world.rank, world.size)
        made = {k: optimizer_of(net, name, None if k in ("whole", "unsharded") else shard) for k, net in nets.items()}
        assert isinstance(made["sharded"], ShardedOptimizer)
        for kind in ("whole", "sharded"):
            steps(nets[kind], made[kind], 0, 3)
        flat = gathered(optimizer_tensors(made["sharded"]), main=world.main)
        whole = optimizer_tensors(made["whole"])
        if world.main:
            torch.save(flat, Path(folder) / f"{name}.pt")
            assert flat.keys() == whole.keys()
            assert all(torch.equal(flat[k], whole[k]) for k in whole)
        barrier()
        for kind in ("again", "unsharded"):
            flat = torch.load(Path(folder) / f"{name}.pt", weights_only=True)
            nets[kind].load_state_dict(nets["sharded"].state_dict())
            load_optimizer(made[kind], flat)
        for kind, optimizer in made.items():
            steps(nets[kind], optimizer, 3, 5)
        results[name] = {kind: net.state_dict() for kind, net in nets.items()} | {
            "bytes": {kind: state_bytes(optimizer) for kind, optimizer in made.items()},
            "rates": [(g["lr"], g["weight_decay"]) for g in made["sharded"].inner.param_groups],
        }
    torch.save(results, Path(folder) / f"rank-{world.rank}.pt")
