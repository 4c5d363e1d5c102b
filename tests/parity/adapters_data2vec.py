"""data2vec's targets and loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from case import Case, Out, arrays, tensor

from imprint.losses.data2vec import averaged_layers, data2vec_loss
from imprint.losses.masked_regression import masked_smooth_l1


def data2vec_case(case: Case) -> Out:
    """The vision code's loss, and fairseq's on the same targets."""
    outputs, beta = tensor(case["outputs"], True), float(case["l1_beta"])
    layers = [tensor(case["layers"][int(k)]) for k in case["target_layers"]]
    places = tensor(np.flatnonzero(case["mask"]))
    targets = averaged_layers(
        layers,
        places,
        layer_norm=bool(case["layer_norm_each"]),
        instance_norm=bool(case["instance_norm_each"]),
        post_layer_norm=bool(case["post_layer_norm"]),
    )
    loss = data2vec_loss(
        outputs,
        targets,
        beta=beta,
        var_weight=float(case["var_w0"]),
        var_margin=float(case["var_margin0"]),
        scale=float(case["loss_scale"]),
    )
    loss.backward()
    return arrays(
        {
            "out_loss": loss,
            "out_targets": targets,
            "out_loss_fairseq_sum": masked_smooth_l1(outputs, targets, beta, width="sqrt", reduction="sum"),
            "out_loss_fairseq_mean": masked_smooth_l1(outputs, targets, beta, width="sqrt"),
            "grad_outputs": outputs.grad,
        }
    )


CASES: dict[str, Callable[[Case], Out]] = {"data2vec": data2vec_case}

LOSSES: dict[str, tuple[str, ...]] = {"data2vec": ("outputs",)}
