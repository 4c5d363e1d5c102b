"""Barlow Twins, VICReg and W-MSE against their rivals: the tables that `losses.py` merges.

Sizes are batch x width: the papers' width of 8,192, a smaller one, and one with more rows than dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from measure import rival_module

SIZES: dict[str, tuple[str, ...]] = {
    "vicreg": ("256x2048", "256x8192", "2048x1024"),
    "barlow_twins": ("256x2048", "512x8192", "2048x1024"),
    "w_mse": ("256x64", "512x64", "1024x128"),
}
QUICK: dict[str, tuple[str, ...]] = {"vicreg": ("256x2048",), "barlow_twins": ("256x2048",), "w_mse": ("256x64",)}
RIVALS: dict[str, tuple[str, ...]] = {
    "vicreg": ("imprint", "lightly", "stable-pretraining"),
    "barlow_twins": ("imprint", "lightly", "stable-pretraining"),
    "w_mse": ("imprint", "lightly"),
}

Loss = Callable[[Tensor, Tensor], Tensor]


def _call(loss: Loss, size: str) -> Callable[[], object]:
    batch, width = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(batch, width, generator=generator).requires_grad_() for _ in range(2))

    def call() -> None:
        z1.grad = z2.grad = None
        loss(z1, z2).backward()

    return call


def vicreg_call(rival: str, size: str) -> Callable[[], object]:
    """VICReg with 25/25/1."""
    if rival == "imprint":
        from imprint.losses.vicreg import vicreg

        return _call(lambda x, y: vicreg(x, y).loss, size)
    if rival == "lightly":
        return _call(rival_module("lightly.loss").VICRegLoss(), size)
    return _call(rival_module("stable_pretraining.losses").VICRegLoss(), size)


def barlow_twins_call(rival: str, size: str) -> Callable[[], object]:
    """Barlow Twins with lambda 0.0051 (stable-pretraining's default: 0.1; the cost is the same)."""
    if rival == "imprint":
        from imprint.losses.barlow_twins import barlow_twins

        return _call(lambda x, y: barlow_twins(x, y).loss, size)
    if rival == "lightly":
        return _call(rival_module("lightly.loss").BarlowTwinsLoss(lambda_param=0.0051), size)
    return _call(rival_module("stable_pretraining.losses").BarlowTwinsLoss(), size)


def w_mse_call(rival: str, size: str) -> Callable[[], object]:
    """W-MSE of two views, sub-batches of twice the width, one permutation."""
    batch, width = (int(n) for n in size.split("x"))
    if rival == "imprint":
        from imprint.losses.w_mse import positive_distance
        from imprint.ops.whitening import whiten

        perm_1B = torch.randperm(batch)[None]
        return _call(lambda x, y: positive_distance(whiten(torch.stack([x, y]), perm_1B, size=2 * width)), size)
    lightly = rival_module("lightly.loss").WMSELoss(embedding_dim=width, w_size=2 * width, num_samples=2)
    return _call(lambda x, y: lightly(torch.cat([x, y])), size)


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {
    "vicreg": vicreg_call,
    "barlow_twins": barlow_twins_call,
    "w_mse": w_mse_call,
}
