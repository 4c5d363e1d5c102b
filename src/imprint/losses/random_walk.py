"""Walks over the patches of a video, there and back, and how likely they end where they began.

Jabri, Owens, Efros 2020 (arXiv 2006.14613). Nodes are patches; the likeness of patches of neighbouring frames
is the chance of a step between them.

Shape suffixes: B videos, T frames, S = T - 1 steps, N nodes of a frame, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imprint.core.errors import ConfigError

EPSILON = 1e-20
"""Added to a probability before its logarithm, as in the public code (ajabri/videowalk, model.py)."""

DROPPED = -1e20
"""Likeness of an edge that was dropped (the public code's): a node that lost all of its edges goes anywhere alike."""


def transitions(nodes_BTND: Tensor, temperature: float, dropped_BS2NN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Return the chances of all steps forward and of all steps back.

    A_t^{t+1}(i, j) = exp(q_t^i . q_{t+1}^j / tau) / sum_l exp(q_t^i . q_{t+1}^l / tau) over unit vectors q; back the
    other way round. Edges that are dropped take no part in numerator and sum, so that a row adds up to 1 again.

    Args:
        nodes_BTND: embeddings, any scale.
        temperature: tau > 0.
        dropped_BS2NN: bool, True = edge left out; first of the steps forward (row: the earlier frame), then of the
            steps back (row: the later frame). None keeps all.

    Returns:
        Forward and backward matrices (B, S, N, N) with rows that add up to 1; float32, float64 for float64 nodes.

    Raises:
        ConfigError: for fewer than two frames, a temperature that is not positive, or masks of another shape.
    """
    if nodes_BTND.ndim != 4 or nodes_BTND.shape[1] < 2:
        raise ConfigError(f"transitions: nodes must be (B, T >= 2, N, D), got {tuple(nodes_BTND.shape)}.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"transitions: temperature must be a positive number, got {temperature}.")
    batch, frames, count, _ = nodes_BTND.shape
    if dropped_BS2NN is not None and dropped_BS2NN.shape != (batch, frames - 1, 2, count, count):
        raise ConfigError(
            f"transitions: dropped edges must be {(batch, frames - 1, 2, count, count)}, "
            f"got {tuple(dropped_BS2NN.shape)}."
        )
    with torch.autocast(nodes_BTND.device.type, enabled=False):
        dtype = torch.float64 if nodes_BTND.dtype == torch.float64 else torch.float32
        unit_BTND = torch.nn.functional.normalize(nodes_BTND.to(dtype), dim=-1)
        likeness_BSNN = unit_BTND[:, :-1] @ unit_BTND[:, 1:].transpose(-1, -2)
        there, back = likeness_BSNN, likeness_BSNN.transpose(-1, -2)
        if dropped_BS2NN is not None:
            there = there.masked_fill(dropped_BS2NN[:, :, 0], DROPPED)
            back = back.masked_fill(dropped_BS2NN[:, :, 1], DROPPED)
        return torch.softmax(there / temperature, -1), torch.softmax(back / temperature, -1)


def walks(forward_BSNN: Tensor, backward_BSNN: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    r"""Return the chances of all walks from the first frame and of those back to it, one (B, N, N) per length.

    There_k = A_0^1 A_1^2 ... A_{k-1}^k and Back_k = A_k^{k-1} ... A_1^0 for k = 1 .. S, each made from the one before
    by a single product.
    """
    there, back = [forward_BSNN[:, 0]], [backward_BSNN[:, 0]]
    with torch.autocast(forward_BSNN.device.type, enabled=False):
        for step in range(1, forward_BSNN.shape[1]):
            there.append(there[-1] @ forward_BSNN[:, step])
            back.append(backward_BSNN[:, step] @ back[-1])
    return there, back


def palindrome_loss(forward_BSNN: Tensor, backward_BSNN: Tensor, *, shortest: int = 1) -> Tensor:
    r"""Return the cross entropy of round trips with the identity: the walker shall come back to where it began.

    L = mean_{k = shortest .. S} mean_i -log((There_k Back_k)_ii + 1e-20) (arXiv 2006.14613, the loss over
    palindromes of every length). Only the diagonals are computed: no matrix of a whole round trip is made.

    Args:
        forward_BSNN: chances of the steps forward, see `transitions`.
        backward_BSNN: chances of the steps back.
        shortest: length of the shortest walk that counts, in steps forward; 1 to S. The public code begins with 2.

    Returns:
        0-d loss of the matrices' dtype; log N for nodes that are all alike.

    Raises:
        ConfigError: for matrices that do not fit together, or a length that there is none of.
    """
    steps = forward_BSNN.shape[1] if forward_BSNN.ndim == 4 else 0
    if forward_BSNN.shape != backward_BSNN.shape or steps == 0 or forward_BSNN.shape[2] != forward_BSNN.shape[3]:
        raise ConfigError(
            f"palindrome_loss: needs two (B, S, N, N), got {tuple(forward_BSNN.shape)} and "
            f"{tuple(backward_BSNN.shape)}."
        )
    if not 1 <= shortest <= steps:
        raise ConfigError(f"palindrome_loss: shortest walk {shortest} must lie between 1 and {steps}.")
    there, back = (lengths[shortest - 1 :] for lengths in walks(forward_BSNN, backward_BSNN))
    # Row i of There_k times column i of Back_k.
    home_LBN = torch.stack([(go * come.transpose(-1, -2)).sum(-1) for go, come in zip(there, back, strict=True)])
    return -(home_LBN + EPSILON).log().mean()


@torch.no_grad()
def return_rate(forward_BSNN: Tensor, backward_BSNN: Tensor) -> Tensor:
    """Return the share of nodes whose longest round trip most likely ends at home, 0-d in [0, 1]; chance is 1 / N."""
    there, back = walks(forward_BSNN, backward_BSNN)
    trip_BNN = there[-1] @ back[-1]
    home_N = torch.arange(trip_BNN.shape[-1], device=trip_BNN.device)
    return (trip_BNN.argmax(-1) == home_N).to(trip_BNN.dtype).mean()
