"""SwAV's codes, loss and queue, and DINOv2's Sinkhorn."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from case import Case, Out, arrays, tensor

from imprint.losses.clustering import swapped_prediction
from imprint.nn.feature_queue import FeatureQueue
from imprint.nn.prototypes import UnitPrototypes
from imprint.ops.sinkhorn import sinkhorn


def swav_case(case: Case) -> Out:
    """One step of SwAV: prototypes normalised, scores, codes (with the old queue, if any), loss, the queue's shift."""
    crops, assign, batch = int(case["n_crops"]), int(case["n_assign"]), int(case["batch"])
    epsilon, iterations = float(case["epsilon"]), int(case["sinkhorn_iterations"])
    z = tensor(case["Z"], True)
    weight = tensor(case["prototypes"])
    prototypes = UnitPrototypes(weight.shape[1], weight.shape[0]).to(weight.dtype)
    prototypes.weight.data.copy_(weight)
    prototypes.normalise_()
    out = {"out_prototypes": prototypes.weight.clone()}
    unit_VBD = F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1).unflatten(0, (crops, batch))
    scores_VBK = prototypes(unit_VBD)
    out["out_scores"] = scores_VBK.flatten(0, 1)
    own_WBK = scores_VBK[:assign].detach()
    if "queue" in case:
        stored = tensor(case["queue"])
        queue = FeatureQueue(*stored.shape).to(stored.dtype)
        for row in reversed(stored.unbind(1)):  # the oldest first, so that the newest ends in front
            queue.push_(row.unsqueeze(1))
        with torch.no_grad():
            past_WQK = prototypes(queue.features)
        codes = sinkhorn(torch.cat([past_WQK, own_WBK], dim=1), epsilon, iterations, last=batch)
        queue.push_(unit_VBD[:assign])
        out["out_queue"] = queue.features
    else:
        codes = sinkhorn(own_WBK, epsilon, iterations)
    for w in range(assign):
        out[f"out_codes_{w}"] = codes[w]
    loss = swapped_prediction(scores_VBK, codes, float(case["temperature"]))
    loss.backward()
    out |= {"out_loss": loss, "grad_Z": z.grad, "grad_prototypes": prototypes.weight.grad}
    out["out_sinkhorn"] = sinkhorn(tensor(case["sinkhorn_in"]), epsilon, iterations)
    return arrays(out)


def dinov2_sinkhorn_case(case: Case) -> Out:
    """The teacher's balanced targets; one function serves class tokens and masked patches."""
    logits, temperature = tensor(case["teacher_output"]), float(case["teacher_temp"])
    q = sinkhorn(logits, temperature, int(case["n_iterations"]))
    single = sinkhorn(logits.float(), temperature, int(case["n_iterations"]))
    return arrays({"out_Q": q, "out_Q_patch": q, "out_Q_float32": single})


CASES: dict[str, Callable[[Case], Out]] = {"swav": swav_case, "dinov2_sinkhorn": dinov2_sinkhorn_case}

LOSSES: dict[str, tuple[str, ...]] = {"swav": ("Z",)}
