"""Distributions that codes are made to follow, sampled from keys: the same for a sample on every process.

Shape suffixes: B samples, L dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.ops.keyed import keyed_uniforms
from imprint.ops.keyed_normals import keyed_normals

Prior = Literal["gaussian", "mixture", "swiss_roll", "uniform"]

COMPONENTS = 10
PETAL_AT, PETAL_LONG, PETAL_WIDE = 1.4, 0.5, 0.1
ROLL_RADIUS, ROLL_TURNS = 3.0, 2.0


def sample_prior(prior: Prior, key: int, index_B: Tensor, dimensions: int, scale: float = 1.0) -> Tensor:
    r"""Return samples of a prior, one for each index (adversarial autoencoders, arXiv 1511.05644, Fig. 4).

    - gaussian: N(0, I).
    - mixture: ten Gaussians in the plane, equally likely, like petals: the k-th at 1.4 (cos a, sin a), a = 2 pi k / 10,
      with deviations .5 along its ray and .1 across.
    - swiss_roll: 3 s (cos 4 pi s, sin 4 pi s), s = sqrt(u): two turns, about equally dense along the curve.
    - uniform: [-1, 1]^L.

    All are multiplied by `scale`. The paper draws mixture and roll without saying their numbers; these are those in
    use by re-implementations.

    Args:
        prior: which.
        key: of this purpose and step (`imprint.core.rng.seed_of`).
        index_B: int64, the samples' positions in the source.
        dimensions: L; mixture and swiss roll lie in the plane.
        scale: spread.

    Returns:
        float32 (B, L).

    Raises:
        ConfigError: for a prior of the plane in other dimensions.
    """
    check_prior(prior, dimensions)
    if prior == "gaussian":
        return scale * keyed_normals(key, index_B, (dimensions,))
    if prior == "uniform":
        return scale * (2 * keyed_uniforms(key, index_B, dimensions) - 1)
    if prior == "swiss_roll":
        s_B = keyed_uniforms(key, index_B, 1)[:, 0].sqrt()
        angle_B = 2 * math.pi * ROLL_TURNS * s_B
        return scale * ROLL_RADIUS * s_B[:, None] * torch.stack([angle_B.cos(), angle_B.sin()], 1)
    component_B = (keyed_uniforms(~key, index_B, 1)[:, 0] * COMPONENTS).floor()
    angle_B = component_B * (2 * math.pi / COMPONENTS)
    normal_B2 = keyed_normals(key, index_B, (2,))
    along_B, across_B = PETAL_AT + PETAL_LONG * normal_B2[:, 0], PETAL_WIDE * normal_B2[:, 1]
    cos_B, sin_B = angle_B.cos(), angle_B.sin()
    return scale * torch.stack([along_B * cos_B - across_B * sin_B, along_B * sin_B + across_B * cos_B], 1)


def check_prior(prior: Prior, dimensions: int) -> None:
    """Refuse a prior of the plane in other dimensions.

    Raises:
        ConfigError: saying what to set.
    """
    if prior in ("mixture", "swiss_roll") and dimensions != 2:
        raise ConfigError(
            f"the prior '{prior}' lies in the plane and codes have {dimensions} dimensions; set --method.latent 2, or "
            "--method.prior gaussian."
        )
