"""InfoNCE against a queue and within the batch; merged into benchmarks/losses.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import rival_module

SIZES: dict[str, tuple[str, ...]] = {
    "info_nce_queue": ("256x4096", "256x65536", "1024x65536"),
    "info_nce": ("512", "2048", "8192"),
}
QUICK: dict[str, tuple[str, ...]] = {"info_nce_queue": ("256x4096",), "info_nce": ("512",)}
RIVALS: dict[str, tuple[str, ...]] = {
    "info_nce_queue": ("imprint", "lightly", "official style"),
    "info_nce": ("imprint", "stable-pretraining", "official style"),
}


def info_nce_queue_call(rival: str, size: str) -> Callable[[], object]:
    """MoCo's loss and the push of the new keys: batch x queue, D = 128, tau = 0.2."""
    batch, count = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, 128, generator=generator).requires_grad_()
    k = torch.randn(batch, 128, generator=generator)

    if rival == "imprint":
        from imprint.losses.info_nce import info_nce_queue
        from imprint.nn.queue import KeyQueue

        queue = KeyQueue(128, count, random_start=True)

        def call() -> None:
            q.grad = None
            loss = info_nce_queue(q, k, queue.keys, 0.2, filled=queue.filled)
            queue.push_(k)
            loss.backward()

    elif rival == "lightly":
        loss_of = rival_module("lightly.loss").NTXentLoss(temperature=0.2, memory_bank_size=(count, 128))

        def call() -> None:
            q.grad = None
            loss_of(q, k).backward()

    else:
        columns, pointer = F.normalize(torch.randn(128, count, generator=generator), dim=0), [0]

        def call() -> None:
            q.grad = None
            u, v = F.normalize(q, dim=1), F.normalize(k, dim=1)
            positive = torch.einsum("nc,nc->n", u, v)[:, None]
            negative = torch.einsum("nc,ck->nk", u, columns.clone())
            logits = torch.cat([positive, negative], dim=1) / 0.2
            columns[:, pointer[0] : pointer[0] + batch] = v.T
            pointer[0] = (pointer[0] + batch) % count
            F.cross_entropy(logits, torch.zeros(batch, dtype=torch.long)).backward()

    return call


def info_nce_call(rival: str, size: str) -> Callable[[], object]:
    """MoCo v3's loss over `size` pairs of queries, both directions, D = 256, tau = 0.2."""
    generator = torch.Generator().manual_seed(0)
    q1, q2 = (torch.randn(int(size), 256, generator=generator).requires_grad_() for _ in range(2))
    k1, k2 = (torch.randn(int(size), 256, generator=generator) for _ in range(2))

    def official(q: Tensor, k: Tensor) -> Tensor:
        logits = torch.einsum("nc,mc->nm", F.normalize(q, dim=1), F.normalize(k, dim=1)) / 0.2
        return F.cross_entropy(logits, torch.arange(len(q))) * 0.4

    one: Callable[[Tensor, Tensor], Tensor] = official
    if rival == "imprint":
        from imprint.losses.info_nce import info_nce

        def one(q: Tensor, k: Tensor) -> Tensor:
            return 0.4 * info_nce(q, k, 0.2)
    elif rival == "stable-pretraining":
        theirs = rival_module("stable_pretraining.losses.joint_embedding").InfoNCELoss(temperature=0.2)

        def one(q: Tensor, k: Tensor) -> Tensor:
            targets = torch.arange(len(q))
            loss: Tensor = theirs(F.normalize(q, dim=1), F.normalize(k, dim=1), targets) * 0.4
            return loss

    def call() -> None:
        q1.grad = q2.grad = None
        (one(q1, k2) + one(q2, k1)).backward()

    return call


CALLS: dict[str, Callable[[str, str], Callable[[], object]]] = {
    "info_nce_queue": info_nce_queue_call,
    "info_nce": info_nce_call,
}
