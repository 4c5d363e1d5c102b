"""How the cases of BYOL, SimSiam, SupCon and KoLeo call Imprint."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from case import Case, Out, arrays, tensor

from imprint.losses.koleo import koleo
from imprint.losses.regression import byol_loss, simsiam_loss
from imprint.losses.supcon import supcon


def byol_case(case: Case) -> Out:
    """The symmetrised regression, its terms, and gradients at the predictions."""
    p1, p2 = tensor(case["p1"], True), tensor(case["p2"], True)
    z1, z2 = tensor(case["z1"], True), tensor(case["z2"], True)
    loss = byol_loss(p1, p2, z1, z2)
    loss.backward()
    assert z1.grad is None and z2.grad is None
    terms = byol_loss(p1, p2, z1, z2, reduction="none")
    return arrays({"out_loss": loss, "out_loss_per_sample": terms, "grad_p1": p1.grad, "grad_p2": p2.grad})


def simsiam_case(case: Case) -> Out:
    """Identity encoder, linear predictor: what reaches x went through the predictor alone."""
    x1, x2, weight = tensor(case["x1"], True), tensor(case["x2"], True), tensor(case["W"], True)
    p1, p2 = (F.linear(x.to(weight.dtype), weight) for x in (x1, x2))
    loss = simsiam_loss(p1, p2, x1, x2)
    loss.backward()
    grads = {"grad_x1": x1.grad, "grad_x2": x2.grad, "grad_W": weight.grad}
    return arrays({"out_loss": loss, "out_p1": p1, "out_p2": p2, **grads})


def supcon_case(case: Case) -> Out:
    """All anchors with labels, without labels, the first view's anchors, and one view alone."""
    features = tensor(case["features"], True)
    labels, single = tensor(case["labels"]), tensor(case["labels_single_view"])
    temperature, base = float(case["temperature"]), float(case["base_temperature"])
    loss = supcon(features, labels, temperature=temperature, base_temperature=base)
    loss.backward()
    unsupervised = supcon(features, temperature=temperature, base_temperature=base)
    one = supcon(features, labels, temperature=temperature, base_temperature=base, contrast="one")
    single_view = supcon(features[:, :1], single, temperature=temperature, base_temperature=base)
    return arrays(
        {
            "out_loss": loss,
            "out_loss_unsup": unsupervised,
            "out_loss_one": one,
            "out_loss_single_view": single_view,
            "grad_features": features.grad,
        }
    )


def koleo_case(case: Case) -> Out:
    """DINOv2's regulariser, and DINOv3's with three neighbours."""
    x = tensor(case["x"], True)
    loss = koleo(x)
    loss.backward()
    return arrays({"out_loss": loss, "out_loss_topk3": koleo(x, top_k=3), "grad_x": x.grad})


CASES: dict[str, Callable[[Case], Out]] = {
    "byol": byol_case,
    "koleo": koleo_case,
    "simsiam": simsiam_case,
    "supcon": supcon_case,
}

LOSSES: dict[str, tuple[str, ...]] = {
    "byol": ("p1", "p2", "z1", "z2"),
    "koleo": ("x",),
    "simsiam": ("x1", "x2"),
    "supcon": ("features",),
}
