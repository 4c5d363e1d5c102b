"""SwAV's Sinkhorn and swapped prediction: codes, loss and gradient from the scores of all crops."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import rival_module

SIZES: dict[str, tuple[str, ...]] = {
    "swav": ("256x2x3000", "2048x2x3000", "512x8x3000"),
    "sinkhorn": ("2048x3000", "4096x16000", "1024x131072"),
}
QUICK: dict[str, tuple[str, ...]] = {"swav": ("256x2x3000",), "sinkhorn": ("512x3000",)}
RIVALS: dict[str, tuple[str, ...]] = {
    "swav": ("imprint", "imprint overwrite", "lightly", "official style"),
    "sinkhorn": ("imprint", "imprint overwrite", "lightly"),
}


def swav_call(rival: str, size: str) -> Callable[[], object]:
    """Images x crops x prototypes, codes of two crops, tau = 0.1, epsilon = 0.05, 3 iterations; scores are cosines."""
    batch, crops, width = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(crops, batch, 128, generator=generator), dim=-1)
    c = F.normalize(torch.randn(width, 128, generator=generator), dim=-1)
    scores = (z @ c.T).requires_grad_()

    if rival.startswith("imprint"):
        from imprint.losses.clustering import swapped_prediction
        from imprint.ops.sinkhorn import sinkhorn

        overwrite = rival.endswith("overwrite")

        def call() -> None:
            scores.grad = None
            mine = scores.view_as(scores) if overwrite else scores
            codes = sinkhorn(mine[:2].detach(), 0.05, 3)
            # Overwriting consumes the values; a training step computes fresh ones, so timing is not affected.
            swapped_prediction(mine, codes, 0.1, overwrite=overwrite).backward()
            if overwrite:
                scores.grad = None

    elif rival == "lightly":
        lightly = rival_module("lightly.loss").SwaVLoss()

        def call() -> None:
            scores.grad = None
            views = list(scores.unbind())
            lightly(views[:2], views[2:]).backward()

    else:

        def call() -> None:
            scores.grad = None
            total = torch.zeros(())
            for i in range(2):
                q = _rescaled(torch.exp(scores[i].detach() / 0.05).T)
                for v in range(crops):
                    if v != i:
                        p = torch.softmax(scores[v] / 0.1, dim=1)
                        total = total - (q * torch.log(p)).sum(dim=1).mean() / (crops - 1)
            (total / 2).backward()

    return call


def _rescaled(q_KB: Tensor) -> Tensor:
    """Balance by rescaling the whole matrix, three rounds, as the public code does."""
    q_KB /= q_KB.sum()
    count, batch = q_KB.shape
    for _ in range(3):
        q_KB *= (1 / count / q_KB.sum(dim=1)).unsqueeze(1)
        q_KB *= (1 / batch / q_KB.sum(dim=0)).unsqueeze(0)
    return (q_KB / q_KB.sum(dim=0, keepdim=True)).T


def sinkhorn_call(rival: str, size: str) -> Callable[[], object]:
    """Samples x prototypes, epsilon = 0.05, 3 iterations: the codes alone."""
    batch, width = (int(n) for n in size.split("x"))
    scores = torch.rand(batch, width, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
    if rival.startswith("imprint"):
        from imprint.ops.sinkhorn import sinkhorn

        # A round trip through its own result: codes lie in [0, 1], as good as scores for timing.
        return lambda: sinkhorn(scores, 0.05, 3, overwrite=rival.endswith("overwrite"))
    rounds = rival_module("lightly.loss.swav_loss").sinkhorn
    return lambda: rounds(scores, 3, 0.05)


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {"swav": swav_call, "sinkhorn": sinkhorn_call}
