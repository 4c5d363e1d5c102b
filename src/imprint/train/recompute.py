"""Activation checkpointing: keep the inputs of an encoder's blocks only, and compute the rest again in backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from imprint.backbones.encoder import Encoder

# Number of the backward pass that runs on this thread, -1 outside of one; torch.utils.checkpoint asks the same.
_backward_pass = torch._C._current_graph_task_id


def recompute_activations(method: nn.Module) -> None:
    """Switch on recomputation in every encoder that learns; frozen ones (teachers) keep no activations anyway.

    Gradients are those without it: stochastic depth and dropout draw the same numbers again, autocast is as it was, and
    a batch norm normalises with the same batch. Its running statistics would move a second time; they are left alone.
    To be called once batch norms are what they will be in training (synchronised or not).

    Raises:
        ConfigError: for an encoder that cannot do it.
    """
    for encoder in method.modules():
        if not isinstance(encoder, Encoder) or not any(p.requires_grad for p in encoder.parameters()):
            continue
        encoder.set_grad_checkpointing(True)
        for norm in encoder.modules():
            if isinstance(norm, _BatchNorm) and norm.track_running_stats:
                norm.register_forward_pre_hook(_set_aside)
                # Also where the pass does not end: torch leaves a repeated one as soon as it has all it needs.
                norm.register_forward_hook(_put_back, always_call=True)


def _set_aside(norm: nn.Module, _inputs: Any) -> None:
    """In a pass that is repeated within backward, let a norm move copies of its running statistics.

    Without any it would keep fewer tensors for backward than the first time, which torch refuses.
    """
    if _backward_pass() != -1:
        norm.__dict__["_set_aside"] = dict(norm._buffers)
        norm._buffers.update({name: value.clone() for name, value in norm._buffers.items() if value is not None})


def _put_back(norm: nn.Module, _inputs: Any, _output: Any) -> None:
    """Give a norm back what `_set_aside` took."""
    norm._buffers.update(norm.__dict__.pop("_set_aside", {}))
