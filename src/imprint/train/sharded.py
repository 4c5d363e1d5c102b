"""Optimizer state divided over processes (ZeRO, arXiv 1910.02054, stage 1): each keeps it for a share of the weights.

Every parameter has one owner, which alone holds its momentum and updates it; the result is broadcast. Whole parameters
are divided, so LARS's norms and every other per-parameter rule are those of the undivided optimizer, and so are the
weights, to the bit. Memory for state shrinks by the number of processes; gradients stay averaged everywhere (DDP), so
clipping and finite checks see all of them.

torch's ZeroRedundancyOptimizer divides alike, but its state is consolidated by pickling whole state dicts to one rank,
its wrapped optimizer is out of reach of loss scaling (`found_inf`) and of the checkpoints here, which name state by
parameter so that any number of processes can read it; and it broadcasts one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from imprint.dist.collectives import gather_objects

Group = dict[str, Any]

BUCKET = 1 << 22
"""Elements that one broadcast joins; larger parameters travel alone and without a copy."""

_OWN_KEYS = frozenset(("params", "names"))


class ShardedOptimizer(torch.optim.Optimizer):
    """An optimizer whose `state` holds this process's share only, and whose `step` leaves all processes equal.

    `param_groups` are those of all parameters, as rates, clipping and checkpoints expect; the wrapped optimizer has the
    same groups with fewer parameters and takes over every other entry before each step.

    Args:
        groups: of all parameters, the same on every process.
        make: builds the optimizer over some groups.
        rank: this process.
        world: number of processes.

    Attributes:
        inner: the optimizer over this process's share.
        owner: rank that updates each parameter.
    """

    def __init__(
        self, groups: list[Group], make: Callable[[list[Group]], torch.optim.Optimizer], rank: int, world: int
    ) -> None:
        self.owner = owners([p for group in groups for p in group["params"]], world)
        self.rank = rank
        own = [{**group, **self._own(group)} for group in groups]
        self.inner = make(own)
        super().__init__([dict(group) for group in groups], dict(self.inner.defaults))
        for group, part in zip(self.param_groups, self.inner.param_groups, strict=True):
            for key, value in part.items():
                group.setdefault(key, value)
        self.state = self.inner.state  # one dictionary: what clears or fills it here does so there

    def _own(self, group: Group) -> Group:
        pairs = [(p, n) for p, n in zip(group["params"], group["names"], strict=True) if self.owner[p] == self.rank]
        return {"params": [p for p, _ in pairs], "names": [n for _, n in pairs]}

    def owns(self, parameter: Tensor) -> bool:
        """Tell whether this process keeps the state of a parameter."""
        return self.owner[parameter] == self.rank

    @property
    def found_inf(self) -> Tensor | None:
        """Flag that makes the fused kernels skip a bad step."""
        flag: Tensor | None = getattr(self.inner, "found_inf", None)
        return flag

    @found_inf.setter
    def found_inf(self, flag: Tensor) -> None:
        self.inner.found_inf = flag  # type: ignore[attr-defined]  # read by the fused kernels

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update this process's share, then take over what the others updated."""
        for group, part in zip(self.param_groups, self.inner.param_groups, strict=True):
            part.update({key: value for key, value in group.items() if key not in _OWN_KEYS})
        loss = self.inner.step(closure) if closure is not None else self.inner.step()
        self._exchange()
        return loss

    def _exchange(self) -> None:
        """Broadcast every parameter from its owner, all at once; each process then unpacks what it received."""
        waiting = []
        for owner, bucket in self._buckets():
            alone = len(bucket) == 1 and bucket[0].is_contiguous()
            flat = bucket[0].detach() if alone else torch.cat([p.detach().reshape(-1) for p in bucket])
            work = torch_dist.broadcast(flat, src=owner, async_op=True)
            waiting.append((work, flat, bucket, alone or owner == self.rank))
        for work, flat, bucket, in_place in waiting:
            work.wait()
            if not in_place:
                parts = flat.split([p.numel() for p in bucket])
                torch._foreach_copy_(bucket, [part.view(p.shape) for part, p in zip(parts, bucket, strict=True)])

    def _buckets(self) -> Iterator[tuple[int, list[Tensor]]]:
        """Yield (owner, parameters of one dtype), the same on every process."""
        alike: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        for parameter, owner in self.owner.items():
            alike.setdefault((owner, parameter.dtype), []).append(parameter)
        for (owner, _), members in alike.items():
            bucket: list[Tensor] = []
            for parameter in members:
                if parameter.numel() >= BUCKET:
                    yield owner, [parameter]
                    continue
                if sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
                    yield owner, bucket
                    bucket = []
                bucket.append(parameter)
            if bucket:
                yield owner, bucket


def owners(params: list[nn.Parameter], world: int) -> dict[Tensor, int]:
    """Return who owns each parameter: the largest first, each to the process with the fewest elements so far."""
    load = [0] * world
    found: dict[Tensor, int] = {}
    for parameter in sorted(params, key=lambda p: -p.numel()):  # stable, so equal everywhere
        rank = load.index(min(load))
        load[rank] += parameter.numel()
        found[parameter] = rank
    return {parameter: found[parameter] for parameter in params}


def gathered(own: dict[str, Tensor], *, main: bool) -> dict[str, Tensor]:
    """Bring the named tensors of all processes to the main one's memory, tensor by tensor; the others return {}.

    Every process must call it.
    """
    described = gather_objects({name: (tuple(value.shape), value.dtype) for name, value in own.items()})
    if not main:
        for value in own.values():
            torch_dist.send(value.detach().cpu().contiguous(), dst=0)
        return {}
    whole = {name: value.detach().cpu() for name, value in own.items()}
    for rank, names in enumerate(described):
        for name, (shape, dtype) in names.items() if rank else ():
            whole[name] = torch.empty(shape, dtype=dtype)
            torch_dist.recv(whole[name], src=rank)
    return whole
