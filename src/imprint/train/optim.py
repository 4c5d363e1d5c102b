"""The optimizer of a run: groups with their own factors, and rates set from schedules at every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imprint.core.errors import CheckpointError
from imprint.methods.base import ParamGroup
from imprint.train.config import OptimConfig


def build_optimizer(
    groups: Iterable[ParamGroup],
    config: OptimConfig,
    device: torch.device,
    *,
    scales: Mapping[int, float] | None = None,
    shard: tuple[int, int] | None = None,
) -> torch.optim.Optimizer:
    """Make the optimizer over a method's groups.

    AdamW, Adam and SGD run torch's fused kernels (one pass over each weight) where the device has them: CPU, CUDA and
    MPS.

    Args:
        groups: what `Method.param_groups` returned.
        config: settings.
        device: where the parameters live.
        scales: further factors on the rate by parameter id (`layer_scales`).
        shard: (rank, number of processes) that the state is divided over, or None.
    """
    settings: list[dict[str, Any]] = [
        {
            "params": params,
            "names": names,
            "name": group.name,
            "lr": 0.0,
            "weight_decay": 0.0,
            "lr_scale": group.lr_scale * scale,
            "decay": group.decay or config.adapt_all,
            "constant_lr": group.constant_lr,
            "adapt": group.adapt or config.adapt_all,
            "decay_scale": group.decay_scale,
        }
        for group in groups
        for scale, params, names in _by_scale(group, scales or {})
    ]
    if shard is not None and shard[1] > 1:
        from imprint.train.sharded import ShardedOptimizer

        return ShardedOptimizer(settings, lambda part: _made(part, config, device), *shard)
    return _made(settings, config, device)


def _made(settings: list[dict[str, Any]], config: OptimConfig, device: torch.device) -> torch.optim.Optimizer:
    fused = device.type in ("cpu", "cuda", "mps")
    if config.name == "adamw":
        return torch.optim.AdamW(settings, lr=0.0, betas=config.betas, eps=config.eps, fused=fused)
    if config.name == "adam":
        return torch.optim.Adam(settings, lr=0.0, betas=config.betas, eps=config.eps, fused=fused)
    if config.name == "sgd":
        sgd = torch.optim.SGD(settings, lr=0.0, momentum=config.momentum, fused=fused)
        if config.momentum:
            # The fused kernel fails on a group where some parameters have a momentum and others, frozen so far, have
            # none; starting all at zero gives the same steps.
            for group in sgd.param_groups:
                for parameter in group["params"]:
                    sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if config.name == "rmsprop":
        return torch.optim.RMSprop(
            settings, lr=0.0, alpha=config.betas[1], eps=config.eps, momentum=config.momentum, foreach=True
        )
    from imprint.train.lars import LARS

    return LARS(settings, lr=0.0, momentum=config.momentum, trust=config.trust, variant=config.lars)


def _by_scale(group: ParamGroup, scales: Mapping[int, float]) -> list[tuple[float, list[nn.Parameter], list[str]]]:
    parts: dict[float, tuple[list[nn.Parameter], list[str]]] = {}
    for parameter, name in zip(group.params, group.names, strict=True):
        params, names = parts.setdefault(scales.get(id(parameter), 1.0), ([], []))
        params.append(parameter)
        names.append(name)
    return [(scale, *parts[scale]) for scale in sorted(parts)]


def set_rates(optimizer: torch.optim.Optimizer, lr: float, peak: float, weight_decay: float) -> None:
    """Set every group's rate and decay for the coming step.

    Args:
        optimizer: from `build_optimizer`.
        lr: scheduled rate.
        peak: the schedule's value after warm-up, which groups with `constant_lr` keep.
        weight_decay: scheduled decay, for the groups that decay.
    """
    for group in optimizer.param_groups:
        group["lr"] = (peak if group["constant_lr"] else lr) * group["lr_scale"]
        group["weight_decay"] = weight_decay * group.get("decay_scale", 1.0) if group["decay"] else 0.0


def named_parameters(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """Return all optimised parameters with their dotted names, in the optimizer's order."""
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as flat tensors, `<state>/<parameter name>`; numbers become 0-d tensors.

    A sharded optimizer gives this process's part.
    """
    flat: dict[str, Tensor] = {}
    for name, parameter in named_parameters(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                flat[f"{key}/{name}"] = value
            elif isinstance(value, (int, float)):
                flat[f"{key}/{name}"] = torch.tensor(value, dtype=torch.float64)
    return flat


def load_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned, in each parameter's own memory format.

    Raises:
        CheckpointError: when the state is of other parameters.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        state, _, name = key.partition("/")
        by_name.setdefault(name, {})[state] = value
    known = dict(named_parameters(optimizer))
    if strangers := sorted(by_name.keys() - known.keys()):
        raise CheckpointError(
            f"the optimizer state names parameters that the model lacks: {', '.join(strangers[:3])}. "
            "The checkpoint is of another method or encoder."
        )
    owns = getattr(optimizer, "owns", lambda _: True)  # a sharded optimizer keeps its part only
    kinds = (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)
    adaptive = isinstance(getattr(optimizer, "inner", optimizer), kinds)
    for name, states in by_name.items():
        parameter = known[name]
        if not owns(parameter):
            continue
        restored: dict[str, Any] = {}
        for state, value in states.items():
            if value.shape == parameter.shape and not (state == "step" and value.ndim == 0):
                restored[state] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif adaptive:  # the kernels keep the step count as a tensor
                restored[state] = value.to(parameter.device)
            else:
                restored[state] = value.item() if value.ndim == 0 else value.to(parameter.device)
        optimizer.state[parameter] = restored
