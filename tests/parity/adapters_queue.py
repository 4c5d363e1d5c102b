"""MoCo: the loss against a queue with the queue's update, and MoCo v3's symmetrised loss within the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Case, Out, arrays, tensor

from imprint.losses.info_nce import info_nce_queue, mocov3_loss, queue_logits
from imprint.nn.queue import KeyQueue


def info_nce_queue_case(case: Case) -> Out:
    """Loss and logits before the push, the queue and its pointer after it; the case holds keys as columns."""
    q, k, columns = tensor(case["q"], True), tensor(case["k"]), tensor(case["queue"])
    temperature = float(case["temperature"])
    queue = KeyQueue(*columns.shape).to(columns.dtype)
    queue.load(columns.t(), pointer=int(case["queue_ptr"]))
    loss = info_nce_queue(q, k, queue.keys, temperature, filled=queue.filled)
    logits = queue_logits(q, k, queue.keys, temperature)
    queue.push_(k)
    loss.backward()
    return arrays(
        {
            "out_loss": loss,
            "out_logits": logits,
            "out_queue": queue.keys.t(),
            "out_queue_ptr": queue.pointer,
            "grad_q": q.grad,
        }
    )


def mocov3_case(case: Case) -> Out:
    """The loss with its factor 2 tau, and without."""
    q1, q2 = tensor(case["q1"], True), tensor(case["q2"], True)
    k1, k2 = tensor(case["k1"]), tensor(case["k2"])
    temperature = float(case["temperature"])
    loss = mocov3_loss(q1, q2, k1, k2, temperature)
    loss.backward()
    with torch.no_grad():
        plain = mocov3_loss(q1, q2, k1, k2, temperature, scale=False)
    return arrays({"out_loss": loss, "out_loss_no_scale": plain, "grad_q1": q1.grad, "grad_q2": q2.grad})


CASES: dict[str, Callable[[Case], Out]] = {"info_nce_queue": info_nce_queue_case, "mocov3": mocov3_case}

LOSSES: dict[str, tuple[str, ...]] = {"info_nce_queue": ("q", "k"), "mocov3": ("q1", "q2", "k1", "k2")}
