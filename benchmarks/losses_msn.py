"""MSN's loss: anchors and prototypes to loss and both gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from measure import rival_module

SIZES: dict[str, tuple[str, ...]] = {"msn": ("64x11x1024", "256x11x1024", "256x11x8192")}
QUICK: dict[str, tuple[str, ...]] = {"msn": ("64x11x1024",)}
RIVALS: dict[str, tuple[str, ...]] = {"msn": ("imprint", "lightly", "plain torch")}


def msn_call(rival: str, size: str) -> Callable[[], object]:
    """Images x anchor views x prototypes, D = 256, tau = 0.1, T = 0.25, me-max weight 1, 3 rounds of Sinkhorn."""
    images, views, count = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    anchors, targets, prototypes = (
        torch.randn(rows, 256, generator=generator) for rows in (images * views, images, count)
    )
    anchors.requires_grad_()
    prototypes.requires_grad_()

    loss: Callable[[], torch.Tensor]
    if rival == "imprint":
        from imprint.losses.msn import msn_loss

        def loss() -> torch.Tensor:
            return msn_loss(anchors, targets, prototypes, sinkhorn_iterations=3).loss

    elif rival == "lightly":
        lightly = rival_module("lightly.loss").MSNLoss(temperature=0.1, sinkhorn_iterations=3, regularization_weight=1)

        def loss() -> torch.Tensor:
            found: torch.Tensor = lightly(anchors, targets, prototypes, target_sharpen_temperature=0.25)
            return found

    else:

        def loss() -> torch.Tensor:
            c = F.normalize(prototypes, dim=1)
            log_p = torch.log_softmax(F.normalize(anchors, dim=1) @ c.T / 0.1, dim=1)
            with torch.no_grad():
                t = torch.softmax(F.normalize(targets, dim=1) @ c.T / 0.1 / 0.25, dim=1)
                for _ in range(3):
                    t = t / t.sum(0, keepdim=True)
                    t = t / t.sum(1, keepdim=True)
            mean = log_p.exp().mean(0)
            return -(t.repeat(views, 1) * log_p).sum(1).mean() + (mean * mean.log()).sum()

    def call() -> None:
        anchors.grad = prototypes.grad = None
        loss().backward()

    return call


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {"msn": msn_call}
