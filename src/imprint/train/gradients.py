"""What happens to gradients between backward and the optimizer: their norm, clipping, and whether they are finite.

Everything is a handful of foreach kernels and stays on the device; the host is not waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

EPSILON = 1e-6


def clip_(
    named: Sequence[tuple[str, nn.Parameter]],
    kind: Literal["global", "tensor", "module"],
    limit: float | None,
) -> Tensor:
    r"""Scale gradients in place to at most `limit` and return their joint L2 norm before, a 0-d float32 tensor.

    g <- g * min(1, limit / (norm + 1e-6)), where norm is taken over all gradients (`global`), over each tensor by
    itself (`tensor`, the public DINO code), or over each direct child module (`module`, DINOv2: student backbone and
    heads by themselves). Parameters without a gradient are passed over.

    Args:
        named: parameters with their dotted names.
        kind: what a norm is taken over.
        limit: largest norm, or None to leave the gradients as they are.
    """
    with_grad = [(name, p) for name, p in named if p.grad is not None]
    if not with_grad:
        return torch.zeros(())
    grads = [p.grad for _, p in with_grad if p.grad is not None]
    norms_P = torch.stack([n.float() for n in torch._foreach_norm(grads)])
    total = torch.linalg.vector_norm(norms_P)
    if limit is None:
        return total
    if kind == "global":
        torch._foreach_mul_(grads, (limit / (total + EPSILON)).clamp(max=1.0))
        return total
    if kind == "tensor":
        torch._foreach_mul_(grads, list((limit / (norms_P + EPSILON)).clamp(max=1.0).unbind(0)))
        return total
    members: dict[str, list[int]] = {}
    for i, (name, _) in enumerate(with_grad):
        members.setdefault(name.partition(".")[0], []).append(i)
    norms = norms_P.unbind(0)
    for rows in members.values():
        norm = torch.linalg.vector_norm(torch.stack([norms[i] for i in rows]))
        torch._foreach_mul_([grads[i] for i in rows], (limit / (norm + EPSILON)).clamp(max=1.0))
    return total
