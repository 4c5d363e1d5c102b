"""I-JEPA's targets and loss."""

from __future__ import annotations

from collections.abc import Callable

from case import Case, Out, arrays, tensor

from imprint.losses.ijepa import block_prediction, block_targets


def ijepa_case(case: Case) -> Out:
    """Targets of every block, once for each context, in the order (block, context, image)."""
    z = tensor(case["z"], True)
    target_TBKD = block_targets(tensor(case["h"]), tensor(case["masks_pred"]))
    loss = block_prediction(z, target_TBKD)
    loss.backward()
    repeated = target_TBKD[:, None].expand(-1, int(case["n_enc"]), -1, -1, -1).flatten(0, 2)
    return arrays({"out_loss": loss, "out_targets": repeated, "grad_z": z.grad})


CASES: dict[str, Callable[[Case], Out]] = {"ijepa": ijepa_case}

LOSSES: dict[str, tuple[str, ...]] = {"ijepa": ("h", "z")}
"""Per case the inputs that are network outputs."""
