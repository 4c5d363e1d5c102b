"""MSN's loss: targets, its three terms, and gradients."""

from __future__ import annotations

from collections.abc import Callable

from case import Case, Out, arrays, tensor

from imprint.losses.msn import msn_loss


def msn_case(case: Case) -> Out:
    """The public code always counts me-max, counts the entropy only where it is on, and repeats targets per view."""
    anchors, targets = tensor(case["anchor_views"], True), tensor(case["target_views"])
    prototypes, labels = tensor(case["prototypes"], True), case["proto_labels"]
    entropy = bool(case["use_entropy"])
    found = msn_loss(
        anchors,
        targets,
        prototypes,
        temperature=float(case["tau"]),
        sharpening=float(case["T"]),
        memax_weight=float(case["memax_weight"]),
        entropy_weight=float(case["ent_weight"]) if entropy else 0.0,
        # Labels are one-hot with (1 - e) + e / K on the diagonal and e / K elsewhere.
        smoothing=min(1.0, max(0.0, len(labels) * float(labels[0, 1]))),
        sinkhorn_iterations=3 if bool(case["use_sinkhorn"]) else 0,
    )
    found.loss.backward()
    return arrays(
        {
            "out_loss": found.loss,
            "out_ploss": found.cross_entropy,
            "out_rloss": found.memax,
            "out_sloss": found.entropy if entropy else found.entropy.new_zeros(()),
            "out_targets": found.targets_BK.repeat(int(case["num_views"]), 1),
            "grad_anchor_views": anchors.grad,
            "grad_prototypes": prototypes.grad,
        }
    )


CASES: dict[str, Callable[[Case], Out]] = {"msn": msn_case}

LOSSES: dict[str, tuple[str, ...]] = {"msn": ("anchor_views", "target_views")}
"""Per case the inputs that are network outputs."""
