"""LARS (arXiv 1708.03888) as four public codes have it, in few foreach calls, without host syncs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from imprint.core.errors import ConfigError, unknown

LarsVariant = Literal["mocov3", "barlow", "simclr", "larc"]


def adapts(parameter: Tensor, variant: LarsVariant) -> bool:
    """Tell whether a public code adapts (and decays) a parameter.

    - `mocov3`: matrices and kernels, ndim > 1.
    - `barlow`: everything but ndim == 1, so a 0-d scale is adapted.
    - `simclr`: biases and BatchNorm are excluded by name; by shape that is ndim <= 1.
    - `larc`: everything.
    """
    if variant not in get_args(LarsVariant):
        raise unknown("LARS variant", variant, get_args(LarsVariant))
    if variant == "larc":
        return True
    return parameter.ndim != 1 if variant == "barlow" else parameter.ndim > 1


def lars_groups(params: Iterable[Tensor], variant: LarsVariant, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters by `adapts` into a group with decay and adaptation and one with neither."""
    chosen: dict[bool, list[Tensor]] = {True: [], False: []}
    for parameter in params:
        chosen[adapts(parameter, variant)].append(parameter)
    return [
        {"params": members, "adapt": adapt, "weight_decay": weight_decay if adapt else 0.0}
        for adapt, members in chosen.items()
        if members
    ]


def trust_ratios(
    params: list[Tensor], grads: list[Tensor], *, weight_decay: float, trust: float, variant: LarsVariant
) -> Tensor:
    r"""Return the local rate of each parameter, a vector on the device.

    eta ||w|| / ||g + beta w||, for `larc` eta ||w|| / (||g|| + beta ||w|| + 1e-8); 1 where either norm is 0, and for
    parameters that the variant excludes (`adapts`).

    Args:
        params: weights w.
        grads: gradients g without decay.
        weight_decay: beta.
        trust: eta.
        variant: which public code.
    """
    size = torch.stack(torch._foreach_norm(params))
    if variant != "larc":
        grads = list(torch._foreach_add(grads, params, alpha=weight_decay))
    ratios = _ratios(size, torch.stack(torch._foreach_norm(grads)), weight_decay, trust, variant)
    chosen = torch.tensor([adapts(p, variant) for p in params], device=ratios.device)
    return torch.where(chosen, ratios, 1.0)


def _ratios(size: Tensor, slope: Tensor, weight_decay: float, trust: float, variant: LarsVariant) -> Tensor:
    """Return the ratios from ||w|| and ||g + beta w|| (`larc`: ||g||)."""
    below = slope + weight_decay * size + 1e-8 if variant == "larc" else slope
    return torch.where((size > 0) & (slope > 0), trust * size / below, 1.0)


def _buckets(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parts that go through all operations together: on a CPU so few that they stay in its cache in between."""
    if params[0].device.type != "cpu":
        yield params
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in params:
        if bucket and size + parameter.numel() > 1 << 18:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    yield bucket


class LARS(torch.optim.Optimizer):
    r"""Layer-wise adaptive rate scaling with momentum.

    q = eta ||w|| / ||g + beta w||;  mu <- m mu + q (g + beta w);  w <- w - lr mu

    - `mocov3`, `barlow`: as above (they differ in what they exclude, see `adapts`).
    - `simclr`: the rate sits inside the momentum, mu <- m mu + lr q (g + beta w), w <- w - mu (classic momentum of the
      TensorFlow code); differs from the second step on when lr changes.
    - `larc`: q = eta ||w|| / (||g|| + beta ||w|| + 1e-8), without clipping (apex LARC around SGD, used by SwAV);
      where ||w|| or ||g|| is 0 the raw gradient is used, without decay.

    q is 1 where a norm is 0 and in groups with `adapt=False`.

    Args:
        params: parameters or groups; a group may set `lr`, `momentum`, `trust`, `weight_decay` and `adapt`.
            Exclusion is by group: see `lars_groups` for the public codes' rules.
        lr: learning rate.
        momentum: m in [0, 1).
        weight_decay: beta, added to the gradient.
        trust: eta.
        variant: which public code to follow.
        adapt: default of the groups' flag.

    Raises:
        ConfigError: for an unknown variant or a value out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        variant: LarsVariant = "mocov3",
        adapt: bool = True,
    ) -> None:
        if variant not in get_args(LarsVariant):
            raise unknown("LARS variant", variant, get_args(LarsVariant))
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0 or trust <= 0:
            raise ConfigError(
                f"LARS: lr {lr} and weight decay {weight_decay} must be >= 0, momentum {momentum} in [0, 1), "
                f"trust {trust} > 0."
            )
        self.variant: LarsVariant = variant
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; with decay the gradients are scratch memory and change."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.device, p.dtype].append(p)
            for params in alike.values():
                for bucket in _buckets(params):
                    self._update(bucket, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self._buffer(p) for p in params]
        lr, decay, variant = group["lr"], group["weight_decay"], self.variant
        # SimCLR's code keeps the rate inside the momentum: the buffer takes lr q d and is subtracted as it is.
        inside, outside = (lr, 1.0) if variant == "simclr" else (1.0, lr)
        raw = torch.stack(torch._foreach_norm(grads)) if group["adapt"] and variant == "larc" else None
        if decay != 0:
            torch._foreach_add_(grads, params, alpha=decay)
        torch._foreach_mul_(buffers, group["momentum"])
        if group["adapt"]:
            size = torch.stack(torch._foreach_norm(params))
            slope = torch.stack(torch._foreach_norm(grads)) if raw is None else raw
            ratios = _ratios(size, slope, decay, group["trust"], variant)
            if raw is not None:  # a zero gradient stays zero: no decay alone
                ratios = torch.where(raw > 0, ratios, 0.0)
            torch._foreach_addcmul_(buffers, grads, list((ratios * inside).unbind()))
        else:
            torch._foreach_add_(buffers, grads, alpha=inside)
        torch._foreach_add_(params, buffers, alpha=-outside)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer
