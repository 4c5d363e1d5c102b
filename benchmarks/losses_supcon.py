"""SupCon's loss: forward plus backward over `size` images with two views, D = 128, 100 classes, tau = 0.1.

lightly and stable-pretraining have no supervised contrastive loss; the rival is the style of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SIZES: dict[str, tuple[str, ...]] = {"supcon": ("512", "2048", "8192")}
QUICK: dict[str, tuple[str, ...]] = {"supcon": ("512",)}
RIVALS: dict[str, tuple[str, ...]] = {"supcon": ("imprint", "official style")}


def supcon_call(rival: str, size: str) -> Callable[[], object]:
    """SupCon over `size` images: unit features as a free leaf, as the authors' loss takes them."""
    generator = torch.Generator().manual_seed(0)
    images = int(size)
    features = F.normalize(torch.randn(images, 2, 128, generator=generator), dim=-1).requires_grad_()
    labels = torch.randint(0, 100, (images,), generator=generator)

    def official(rows_BVD: Tensor, names_B: Tensor) -> Tensor:
        same = (names_B[:, None] == names_B[None]).float().repeat(2, 2)
        keys = torch.cat(rows_BVD.unbind(1))
        logits = keys @ keys.T / 0.1
        logits = logits - logits.amax(dim=1, keepdim=True).detach()
        others = 1 - torch.eye(len(keys))
        same = same * others
        log_probability = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
        return -(0.1 / 0.07) * ((same * log_probability).sum(1) / same.sum(1)).mean()

    loss: Callable[[Tensor, Tensor], Tensor]
    if rival == "imprint":
        from imprint.losses.supcon import supcon as loss
    else:
        loss = official

    def call() -> None:
        features.grad = None
        loss(features, labels).backward()

    return call


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {"supcon": supcon_call}
