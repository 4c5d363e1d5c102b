"""A linear probe on every layer: where in the encoder the classes can be read off, from one pass over the images.

Generative encoders (iGPT, Chen et al. 2020, Sec. 4.2 and Fig. 2) and masked ones have their best features in the
middle; joint-embedding ones at the end.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imprint.core.errors import ConfigError
from imprint.evals.represent import pick_device, represent, resting
from imprint.viz.charts import Chart, Series, draw

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder
    from imprint.evals.features import FeatureTable
    from imprint.evals.linear import LinearConfig
    from imprint.viz.raster import Picture


def every_layer(encoder: Encoder, config: LinearConfig) -> tuple[LinearConfig, list[int]]:
    """Return the configuration that makes the features of all layers side by side, and the width of each layer's.

    Raises:
        ConfigError: for an encoder without layers, or tokens that need several at once.
    """
    if config.tokens == "cls+patch_mean" or config.layers or config.augment:
        raise ConfigError(
            "--each-layer probes every layer by itself: leave out --layers and --augment, and give --tokens pooled, "
            "cls or patch_mean."
        )
    layers = tuple(range(encoder.depth))
    if not layers:
        raise ConfigError(f"'{encoder.name}' has no layers to probe one by one; leave out --each-layer.")
    side = config.image_size or encoder.image_size
    place = pick_device(config.device, encoder)
    with resting(encoder, place), torch.no_grad():
        image = torch.zeros(1, encoder.channels, side, side, device=place)
        widths = [represent(encoder, image, config.tokens, (layer,)).shape[1] for layer in layers]
    return dataclasses.replace(config, layers=layers), widths


def columns(table: FeatureTable, widths: list[int]) -> list[FeatureTable]:
    """Return one table per layer, views into the joint one."""
    ends = np.cumsum([0, *widths]).tolist()
    return [dataclasses.replace(table, features_ND=table.features_ND[:, a:b]) for a, b in pairwise(ends)]


def curve(rows: list[dict[str, Any]]) -> Picture:
    """Draw test and held-out top-1 over the layers."""
    layers = tuple(float(row["layer"]) for row in rows)
    lines = tuple(
        Series(name, layers, tuple(float(row[key]) for row in rows))
        for name, key in (("test", "top1"), ("held out", "held_out_top1"))
    )
    return draw(Chart("Linear probe by layer", lines, unit="%", x_label="layer", y_label="top-1", dots=True))
