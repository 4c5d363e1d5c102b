"""Matrix products of float32 on a CPU by the library that is fastest there, and torch's own everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _onednn() -> Callable[..., Any] | None:
    """Return oneDNN's linear operator, or None where this build of torch has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        found: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise
        ones = torch.ones(16, 16)
        return found if torch.equal(found(ones, ones, None, "none", [], ""), ones @ ones) else None
    except (AttributeError, RuntimeError):
        return None


_LINEAR = _onednn()


def rows_by_rows(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """Return a @ b^T (M, N), without gradient.

    torch multiplies float32 matrices on x86 by MKL, which leaves half of the vector unit unused on processors that are
    not Intel's; oneDNN, which torch carries for convolutions, uses all of it. Either operand may be a transposed view.
    """
    usable = a_MK.device.type == b_NK.device.type == "cpu" and a_MK.dtype == b_NK.dtype == torch.float32
    if _LINEAR is None or not usable or not a_MK.numel() or not b_NK.numel():
        return a_MK @ b_NK.T
    product: Tensor = _LINEAR(a_MK.detach(), b_NK.detach(), None, "none", [], "")
    return product
