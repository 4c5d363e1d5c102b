"""Several processes as one: synchronised batch norms and averaged gradients (DDP)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from imprint.backbones.encoder import Encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.dist.sync_batchnorm import synchronise
from imprint.dist.world import World
from imprint.methods.base import Method

Forward = Callable[[Batch, Progress], tuple[Tensor, dict[str, Tensor]]]


# Newer torch has another word for the broadcast of buffers before every forward pass, and warns about the old one.
_WORDS = inspect.signature(DistributedDataParallel).parameters
_NO_SYNC: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in _WORDS else "broadcast_buffers": False}


class _Pair(nn.Module):
    """The method's forward as a plain tuple, which DDP can look into for the tensors that backward starts from."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, t: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.method(batch, t)
        return output.loss, {name: value.detach() for name, value in output.metrics.items()}


def synchronise_norms(method: Method, world: World) -> None:
    """Make batch norms take their statistics over all processes (in place; names stay)."""
    if world.distributed and any(isinstance(m, _BatchNorm) for m in method.modules()):
        synchronise(method, world.device)


def compile_encoders(method: Method) -> None:
    """Compile every encoder of the method in place; names of weights stay.

    The rest of a method is small, and its use of Progress (numbers that change at every step) would recompile it.
    """
    for module in method.modules():
        if isinstance(module, Encoder):
            module.compile()


class Parallel:
    """A method's forward on this process, with gradients averaged over all processes in backward.

    A graph that stays the same is declared static, which spares the search for unused parameters and allows ones
    without gradient (a mask token that this method never uses). Accumulation skips the exchange in all backward passes
    but the last one of a step; a static graph does not allow that, so unused parameters are then searched for.
    """

    def __init__(self, method: Method, world: World, accumulate: int) -> None:
        pair = _Pair(method)
        self._ddp: DistributedDataParallel | None = None
        self.forward: Forward = cast(Forward, pair)
        if world.distributed:
            self._ddp = DistributedDataParallel(
                pair,
                **_NO_SYNC,  # every process computes the same ones
                gradient_as_bucket_view=True,
                static_graph=accumulate == 1,
                find_unused_parameters=accumulate > 1,
            )
            self.forward = cast(Forward, self._ddp)

    def exchange(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward and backward pass that exchanges gradients or leaves them to a later one."""
        if self._ddp is None or wanted:
            return contextlib.nullcontext()
        return self._ddp.no_sync()


def replicas_agree(method: Method, world: World) -> bool:
    """Tell whether all processes hold the same weights (a sum over them is compared), for checks after a resume."""
    from imprint.dist.collectives import all_reduce_mean

    if not world.distributed:
        return True
    own = torch.stack([p.detach().double().sum() for p in method.parameters()])
    return bool(torch.equal(all_reduce_mean(own), own))
