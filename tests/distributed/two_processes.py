"""What each of the processes of these tests does; results go into a folder, `rank-R.pt` each."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import torch

from imprint.core.errors import HealthError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.data.masks import Place, draw_masks
from imprint.dist.collectives import (
    all_reduce_mean,
    all_reduce_sum,
    all_reduce_sum_with_grad,
    any_process,
    barrier,
    broadcast_object,
    gather_objects,
    gather_with_grad,
)
from imprint.dist.world import World, init_from_env
from imprint.methods.catalog import row
from imprint.recipes.book import stages_of
from imprint.train.config import LR, OptimConfig

ROWS = 8


def collectives(folder: str) -> None:
    """Exchange known values."""
    world = init_from_env("cpu")
    torch.manual_seed(0)
    every = torch.randn(ROWS, 3)
    own = every.chunk(world.size)[world.rank].clone().requires_grad_()
    gathered, offset = gather_with_grad(own)
    # Each process weighs the rows differently, so the gradient of a row needs all processes.
    (gathered * torch.arange(gathered.numel()).view_as(gathered) * (world.rank + 1)).sum().backward()
    share = torch.tensor([1.0 + world.rank], requires_grad=True)
    (all_reduce_sum_with_grad(share) * (world.rank + 2)).backward()
    result = {
        "world": (world.rank, world.size),
        "gathered": gathered.detach(),
        "offset": offset,
        "grad": own.grad,
        "sum": all_reduce_sum(torch.tensor([world.rank + 1.0])),
        "mean": all_reduce_mean(torch.tensor([world.rank + 1.0])),
        "sum_grad": share.grad,
        "any": (any_process(world.rank == 1), any_process(False)),
        "object": broadcast_object({"from": world.rank}),
        "objects": gather_objects(world.rank * 10),
    }
    barrier()
    torch.save(result, Path(folder) / f"rank-{world.rank}.pt")


def batch_norms(folder: str) -> None:
    """Normalise half a batch each, with statistics of the whole."""
    from imprint.dist.sync_batchnorm import synchronise

    world = init_from_env("cpu")
    results = {}
    for name, net, shape in norm_cases():
        synchronise(net, world.device)
        x = norm_input(shape)
        own = x.chunk(world.size)[world.rank].clone().requires_grad_()
        out = net(own)
        weight = norm_input((ROWS, *out.shape[1:]), seed=5).chunk(world.size)[world.rank]
        (out * weight).sum().backward()
        grads = {k: all_reduce_sum(p.grad) for k, p in net.named_parameters()}
        net.eval()
        results[name] = {
            "out": out.detach(),
            "grad": own.grad,
            "grads": grads,
            "state": {k: v.clone() for k, v in net.state_dict().items()},
            "eval": net(own).detach(),
        }
    torch.save(results, Path(folder) / f"rank-{world.rank}.pt")


def norm_cases() -> list[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """Return norms to synchronise, inside a container, and shapes of their input."""
    from torch import nn

    torch.manual_seed(1)
    cases = [
        ("1d", nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()), (ROWS, 6)),
        ("2d", nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), (ROWS, 3, 6, 6)),
        ("bare", nn.Sequential(nn.BatchNorm1d(6, affine=False, track_running_stats=True)), (ROWS, 6)),
    ]
    importlib.import_module("imprint.backbones.torchvision_compat")  # makes timm importable everywhere
    from timm.layers import BatchNormAct2d

    cases.append(("fused", nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)), (ROWS, 3, 6, 6)))
    return cases


def norm_input(shape: tuple[int, ...], seed: int = 4) -> torch.Tensor:
    """Return rows whose mean and spread differ between the halves."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x[ROWS // 2 :] = x[ROWS // 2 :] * 3 + 2
    return x


def gradients(folder: str, names: tuple[str, ...]) -> None:
    """Compute loss and gradients of one step of each method, each process on its part of the batch."""
    world = init_from_env("cpu")
    results = {name: one_step(name, world) for name in names}
    torch.save(results, Path(folder) / f"rank-{world.rank}.pt")


def config_of(name: str):
    """Return the debug recipe (its first stage) without dropout: noise of its own in each process is no equality.

    Plain SGD, because an adaptive rate would blow the rounding noise of a dead gradient (a bias before a norm) up to
    the size of a step.
    """
    base = stages_of(f"{name}/debug")[0]
    encoder = dataclasses.replace(
        base.encoder,
        drop_path=0.0,
        arch=dataclasses.replace(base.encoder.arch, dropout=base.encoder.arch.dropout and 0.0),
    )
    optim = OptimConfig(name="sgd", lr=LR(base=1e-3, rule="none"))
    method = base.method
    if getattr(method, "noise", None) is not None:  # the discrete VAE's, drawn by each process for its own rows
        method = dataclasses.replace(method, noise=0.0)
    if getattr(method, "dropout", None):
        method = dataclasses.replace(method, dropout=0.0)
    if getattr(method, "classes", None) == 0:  # the trainer would ask the labels, which `fixed_batch` makes
        method = dataclasses.replace(method, classes=3)
    return dataclasses.replace(base, method=method, encoder=encoder, optim=optim, batch_size=16, precision="fp32")


def one_step(name: str, world: World) -> dict[str, object]:
    """Take one step on this process's rows of a fixed batch; return loss, gradients, and what moved."""
    from imprint.methods.catalog import method_class
    from imprint.train.build import build_method
    from imprint.train.optim import build_optimizer
    from imprint.train.parallel import synchronise_norms
    from imprint.train.precision import choose_precision
    from imprint.train.step import Stepper

    config, cls = config_of(name), method_class(name)
    torch.manual_seed(0)
    method = build_method(config, 3)
    encoder = method.encoder
    method.train()
    synchronise_norms(method, world)
    optimizer = build_optimizer(method.param_groups(), config.optim, world.device)
    stepper = Stepper(config, method, optimizer, world, choose_precision("fp32", world.device, None, False))
    rows = config.batch_size // world.size
    whole = fixed_batch(cls, config, encoder.patch_size)
    part = whole.part(world.rank * rows, (world.rank + 1) * rows)
    grads: dict[str, torch.Tensor] = {}
    real = optimizer.step

    def keep(*args, **kwargs):
        grads.update({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
        return real(*args, **kwargs)

    optimizer.step = keep
    for step in range(2):  # the second one sees the moved weights, teacher and centre
        metrics = stepper(part, Progress(4 + step, 20, 4))
    loss = all_reduce_mean(metrics["loss"])
    return {"loss": loss, "grads": grads, "state": {k: v.clone() for k, v in method.state_dict().items()}}


def fixed_batch(cls, config, patch_size: int) -> Batch:
    """Return a batch of noise in the shapes that the method declares."""
    rng = np.random.default_rng(0)
    size = config.encoder.image_size
    views = {
        v.name: torch.from_numpy(
            rng.integers(0, 255, (v.count, config.batch_size, 3, v.crop.size, v.crop.size), dtype=np.uint8)
        )
        for v in viewed(cls, config)
    }
    clips = {}
    for c in cls.clips(config.method, size):
        shape = (c.count, config.batch_size, c.frames, 3, c.crop.size, c.crop.size)
        clips[c.name] = torch.from_numpy(rng.integers(0, 255, shape, dtype=np.uint8))
    masks = {}
    index = torch.arange(config.batch_size)
    at = Place(seed=0, epoch=0, step=0, index_B=index.numpy(), first=0, total=config.batch_size)
    for mask in cls.masks(config.method, size, patch_size):
        masks.update({name: torch.from_numpy(drawn) for name, drawn in draw_masks(mask, at).items()})
    tokens = token_rows(rng, cls.texts(config.method), config)
    return Batch(views=views, clips=clips, masks=masks, tokens=tokens, index_B=index, labels_B=index % 3)


def viewed(cls, config) -> tuple:
    """Return the views of methods that have them: not those of video or of text alone."""
    size = config.encoder.image_size
    if row(config.name).takes == "text" or cls.clips(config.method, size):
        return ()
    return cls.views(config.method, size)


def token_rows(rng, texts, config) -> dict[str, torch.Tensor]:
    """Return rows of tokens of different lengths, as the method declared them; ids as of a tokenizer learned here."""
    if texts is None:
        return {}
    shape = (config.batch_size, texts.length)
    ids = rng.integers(5, config.method.vocabulary, shape)
    size = rng.integers(texts.length // 2, texts.length + 1, (config.batch_size, 1))
    place = np.arange(texts.length)
    if texts.packing in ("captions", "next", "order"):
        ids[:, 0] = 2
        ids[place == size - 1] = 3
        ids[place >= size] = -1
    found = {texts.name: ids}
    if texts.packing in ("next", "order"):
        ids[place == size // 2] = 3
        found[f"{texts.name}:segment"] = (place > size // 2).astype(np.int64)
        found[f"{texts.name}:label"] = rng.integers(0, 2, config.batch_size)
    return {name: torch.from_numpy(value) for name, value in found.items()}


def fails(folder: str) -> None:
    """Rank 1 raises an error of ours while rank 0 waits for it in a collective."""
    world = init_from_env("cpu")
    if world.rank == 1:
        raise HealthError("numbers ran away in rank 1.")
    barrier()


def breaks(folder: str) -> None:
    """Rank 0 raises an error that nobody meant."""
    world = init_from_env("cpu")
    if world.rank == 0:
        raise KeyError("a bug")
    barrier()


def dies(folder: str) -> None:
    """Rank 1 is killed."""
    import os
    import signal

    world = init_from_env("cpu")
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    barrier()
