"""What every adapter needs: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Case = Mapping[str, np.ndarray]
Out = dict[str, np.ndarray]


def tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    """Return a tensor of its own memory."""
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def arrays(tensors: Mapping[str, Tensor | None]) -> Out:
    """Return detached arrays; None, a gradient that never came, is an error."""
    out: Out = {}
    for name, value in tensors.items():
        assert value is not None, f"{name} got no gradient"
        out[name] = value.detach().numpy()
    return out
