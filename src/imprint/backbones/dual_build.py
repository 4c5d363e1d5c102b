"""An image tower and a text tower that are trained here, put together, and taken apart again.

Shapes: D width of the image tower, E width of the shared space.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.language_model import LanguageModel
from imprint.backbones.text_tower import TextTower, TowerShape
from imprint.core.errors import CheckpointError, ConfigError

TOWER = "vision."
"""Prefix of the image tower's weights in those of a DualEncoder."""


def build_dual(vision: Encoder, shape: TowerShape, *, scale: float = 1.0, bias: float | None = None) -> DualEncoder:
    """Put a fresh text tower of `shape` beside an image tower.

    CLIP projects images by a matrix without bias, from N(0, 1 / D); SigLIP takes the image tower's own vector where
    its width is that of the shared space, and a linear layer otherwise.

    Args:
        vision: the image tower.
        shape: of the text tower.
        scale: first factor of every similarity, > 0.
        bias: first summand of every similarity, or None for none (CLIP).

    Raises:
        ConfigError: for an encoder that has no vector for an image.
    """
    if isinstance(vision, LanguageModel):
        raise ConfigError(f"the image tower must see images, and '{vision.name}' reads text; give a timm name.")
    projection: nn.Module
    if shape.kind == "clip":
        projection = nn.Linear(vision.embed_dim, shape.joint, bias=False)
        nn.init.normal_(projection.weight, std=vision.embed_dim**-0.5)
    else:
        projection = nn.Identity() if vision.embed_dim == shape.joint else nn.Linear(vision.embed_dim, shape.joint)
    return DualEncoder(
        vision,
        TextTower(shape),
        projection,
        nn.Parameter(torch.tensor(math.log(scale))),
        None if bias is None else nn.Parameter(torch.tensor(float(bias))),
        {**vision.config, "text": {**dataclasses.asdict(shape), "biased": bias is not None}},
    )


def rebuild_dual(vision: Encoder, text: Mapping[str, Any]) -> DualEncoder:
    """Put the text tower of a stored configuration beside an image tower, untrained.

    Raises:
        CheckpointError: for a configuration that this version does not know.
    """
    told = dict(text)
    biased = bool(told.pop("biased", False))
    try:
        shape = TowerShape(**told)
    except TypeError as error:
        raise CheckpointError(f"the stored text tower is of another version: {error}.") from error
    return build_dual(vision, shape, bias=0.0 if biased else None)


def image_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the image tower's weights from those of a stored DualEncoder, as an encoder of images is stored."""
    found = {k.removeprefix(TOWER): v for k, v in state.items() if k.startswith(TOWER)}
    return {k.removeprefix("model."): v for k, v in found.items()}
