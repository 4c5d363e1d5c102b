"""Overrides of an architecture's size, so that a named backbone can be small enough for a CPU. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Arch:
    """Sizes (and one start) that replace those of the named model; None keeps the model's own.

    Attributes:
        embed_dim: width of a ViT's tokens.
        depth: number of a ViT's blocks.
        num_heads: attention heads of a ViT; must divide `embed_dim`.
        mlp_ratio: hidden width of a ViT's MLPs as a multiple of `embed_dim`.
        layers: blocks in each stage of a ResNet or ConvNeXt (four numbers).
        channels: width of each stage of a ResNet or ConvNeXt (four numbers; before a Bottleneck's expansion).
        zero_init_last: start the last BatchNorm gain of every ResNet or RegNet block at zero (timm does); False starts
            it at one, as the public codes of MoCo, SwAV and DINO do.
    """

    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    layers: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    zero_init_last: bool | None = None

    def overrides(self) -> dict[str, Any]:
        """Return the fields that are set, JSON-ready."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
