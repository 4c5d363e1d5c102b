"""CAPI's clustering head: assignments, loss and gradients."""

from __future__ import annotations

from collections.abc import Callable

from case import Case, Out, arrays, tensor

from imprint.losses.capi import balanced_assignments, clustering_loss
from imprint.nn.clustering_head import ClusteringHead


def capi_case(case: Case) -> Out:
    """One call of the clustering head on patches [positions, images, width]."""
    x = tensor(case["x"], True)
    weight = tensor(case["W"])
    head = ClusteringHead(weight.shape[1], weight.shape[0], bias="b" in case).to(weight.dtype)
    head.layer.weight.data.copy_(weight)
    if "b" in case:
        head.layer.bias.data.copy_(tensor(case["b"]))
    logits = head(x)
    assignments = balanced_assignments(
        logits, float(case["target_temp"]), int(case["n_sk_iter"]), positionwise=bool(case["positionwise_sk"])
    )
    loss = clustering_loss(logits, assignments, float(case["pred_temp"]))
    loss.backward()
    out = {"out_loss": loss, "out_assignments": assignments, "grad_x": x.grad, "grad_W": head.layer.weight.grad}
    if "b" in case:
        out["grad_b"] = head.layer.bias.grad
    return arrays(out)


CASES: dict[str, Callable[[Case], Out]] = {"capi": capi_case}

LOSSES: dict[str, tuple[str, ...]] = {"capi": ("x",)}
