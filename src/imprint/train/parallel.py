"""Several processes as one: synchronised batch norms and averaged gradients (DDP)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
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

    def __init__(self, method: Method, objective: str) -> None:
        super().__init__()
        self.method, self.objective = method, objective

    def forward(self, batch: Batch, t: Progress) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.method(batch, t, self.objective) if self.objective else self.method(batch, t)
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

    A method with several objectives gets one such wrapper for each, over the parameters that this objective moves.
    """

    def __init__(self, method: Method, world: World, accumulate: int) -> None:
        self._forward: dict[str, Forward] = {}
        self._others: dict[str, list[nn.Parameter]] = {}
        # Wrappers that share parameters must each search: a static graph counts the other's backward passes, too.
        shared = any(isinstance(group.objective, tuple) for group in method.param_groups())
        static = accumulate == 1 and not shared
        for objective in method.objectives or ("",):
            pair = _Pair(method, objective)
            own = {id(p) for group in method.param_groups() if group.moved_by(objective) for p in group.params}
            others = [(n, p) for n, p in method.named_parameters() if p.requires_grad and id(p) not in own]
            self._others[objective] = [p for _, p in others] if objective else []
            self._forward[objective] = cast(Forward, pair)
            if world.distributed:
                if objective:
                    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                        pair, [f"method.{name}" for name, _ in others]
                    )
                self._forward[objective] = DistributedDataParallel(
                    pair,
                    **_NO_SYNC,  # every process computes the same ones
                    gradient_as_bucket_view=True,
                    static_graph=static,
                    find_unused_parameters=not static,
                )

    @contextlib.contextmanager
    def only(self, objective: str) -> Iterator[None]:
        """Let nothing but the parameters of this objective take gradients; "" leaves all as they are."""
        others = self._others[objective]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def forward(self, batch: Batch, t: Progress, objective: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and detached metrics of an objective."""
        return self._forward[objective](batch, t)

    def exchange(self, wanted: bool, objective: str = "") -> contextlib.AbstractContextManager[Any]:
        """Return the context of a forward and backward pass that exchanges gradients or leaves them to a later one."""
        wrapped = self._forward[objective]
        if wanted or not isinstance(wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return wrapped.no_sync()


def replicas_agree(method: Method, world: World) -> bool:
    """Tell whether all processes hold the same weights (a sum over them is compared), for checks after a resume."""
    from imprint.dist.collectives import all_reduce_mean

    if not world.distributed:
        return True
    own = torch.stack([p.detach().double().sum() for p in method.parameters()])
    return bool(torch.equal(all_reduce_mean(own), own))
