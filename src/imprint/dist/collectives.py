"""Exchange between the processes of a run; every function is the identity for a process alone.

Shapes: B rows of one process, A = B * world rows of all, D width.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

T = TypeVar("T")

# Newer torch gives these two collectives other names and warns about the old ones.
_all_gather: Any = getattr(torch_dist, "all_gather_single", None) or torch_dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(torch_dist, "reduce_scatter_single", None) or torch_dist.reduce_scatter_tensor


def _alone() -> bool:
    return not torch_dist.is_initialized() or torch_dist.get_world_size() == 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x_BD: Tensor) -> Tensor:
        return all_gather(x_BD)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:
        grad_AD = grads[0].contiguous()
        rows = grad_AD.shape[0] // torch_dist.get_world_size()
        if grad_AD.is_cuda:
            grad_BD = grad_AD.new_empty(rows, *grad_AD.shape[1:])
            _reduce_scatter(grad_BD, grad_AD)
            return grad_BD
        grad_AD = grad_AD.clone()
        torch_dist.all_reduce(grad_AD)
        offset = torch_dist.get_rank() * rows
        return grad_AD[offset : offset + rows]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        torch_dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        torch_dist.all_reduce(total)
        return total


def all_gather(x_BD: Tensor) -> Tensor:
    """Return the rows of all processes, (A, D), detached."""
    if _alone():
        return x_BD.detach()
    x_BD = x_BD.detach().contiguous()
    all_AD = x_BD.new_empty(x_BD.shape[0] * torch_dist.get_world_size(), *x_BD.shape[1:])
    _all_gather(all_AD, x_BD)
    return all_AD


def gather_with_grad(x_BD: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, (A, D), and the offset of this process's own rows in them.

    Backward sums the gradients that all processes give to these rows and returns them to their owner. With a loss that
    is a mean over each process's own B rows, averaging parameter gradients over processes (DDP) then yields exactly
    the gradient of the mean over all A rows. Every process must bring the same number of rows.
    """
    if _alone():
        return x_BD, 0
    gathered: Tensor = _Gather.apply(x_BD)
    return gathered, torch_dist.get_rank() * x_BD.shape[0]


def all_reduce_sum_with_grad(x: Tensor) -> Tensor:
    """Return the sum of `x` over processes; the gradient is summed over processes, too."""
    if _alone():
        return x
    total: Tensor = _Sum.apply(x)
    return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of `x` over processes, detached; `x` is left unchanged."""
    if _alone():
        return x.detach()
    total = x.detach().contiguous().clone()
    torch_dist.all_reduce(total)
    return total


def all_reduce_mean(x: Tensor) -> Tensor:
    """Return the mean of `x` over processes, detached; `x` is left unchanged."""
    if _alone():
        return x.detach()
    return all_reduce_sum(x) / torch_dist.get_world_size()


def all_reduce_max(x: Tensor) -> Tensor:
    """Return the elementwise maximum of `x` over processes, detached; `x` is left unchanged."""
    if _alone():
        return x.detach()
    highest = x.detach().contiguous().clone()
    torch_dist.all_reduce(highest, op=torch_dist.ReduceOp.MAX)
    return highest


def any_process(flag: bool) -> bool:
    """Tell every process whether `flag` is true in at least one of them."""
    if _alone():
        return flag
    word = torch.tensor([int(flag)])
    torch_dist.all_reduce(word, op=torch_dist.ReduceOp.MAX)
    return bool(word.item())


def broadcast_object(value: T, source: int = 0) -> T:
    """Return the value that process `source` holds."""
    if _alone():
        return value
    box: list[Any] = [value]
    torch_dist.broadcast_object_list(box, src=source, device=torch.device("cpu"))
    received: T = box[0]
    return received


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, by rank."""
    if _alone():
        return [value]
    gathered: list[Any] = [None] * torch_dist.get_world_size()
    torch_dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    """Wait until every process is here."""
    any_process(False)
