"""Gaussian noise on the device that is a function of a sample and a key.

Shape suffixes: B samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imprint.ops.keyed import keyed_uniforms


def keyed_normals(key: int, index_B: Tensor, shape: Sequence[int]) -> Tensor:
    r"""Return standard normal noise for every sample, the same wherever in a batch or on which process it is.

    z = sqrt(-2 log(1 - u)) (cos 2 pi v, sin 2 pi v) of keyed uniforms u, v (Box and Muller 1958).

    Args:
        key: one for each purpose and step (`imprint.core.rng.seed_of`).
        index_B: int64, the samples' positions in the source, or any other numbers.
        shape: of the noise of one sample.

    Returns:
        float32 (B, *shape), within +-5.8.
    """
    count = math.prod(shape)
    pairs = -(-count // 2)
    u_BP, v_BP = keyed_uniforms(key, index_B, 2 * pairs).chunk(2, dim=1)
    radius_BP = (-2.0 * torch.log1p(-u_BP)).sqrt()
    angle_BP = (2.0 * math.pi) * v_BP
    z_BN = torch.cat((radius_BP * angle_BP.cos(), radius_BP * angle_BP.sin()), dim=1)
    return z_BN[:, :count].unflatten(1, tuple(shape))
