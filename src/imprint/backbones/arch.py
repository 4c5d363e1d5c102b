"""Overrides of an architecture's sizes and parts, so that a named backbone can be small enough for a CPU, or a paper's
own variant. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Arch:
    """Sizes and parts that replace those of the named model; None keeps the model's own.

    Attributes:
        embed_dim: width of a ViT's tokens, or of a Swin's first stage.
        depth: number of a ViT's blocks.
        num_heads: attention heads of a ViT; must divide `embed_dim`.
        mlp_ratio: hidden width of a ViT's MLPs as a multiple of `embed_dim`.
        mlp: `swiglu` puts a SwiGLU in place of a ViT's MLP, of 2/3 the hidden width rounded up to 8 (DINOv2,
            arXiv 2304.07193, Sec. 5; public code). BEiT and Eva take their own SwiGLU of the full width.
        layer_scale: LayerScale's first value in a ViT; 0 removes it (DINOv2 starts at 1e-5, BEiT at 0.1).
        qk_norm: normalise a ViT's queries and keys.
        absolute_positions: False removes a ViT's, Eva's or BEiT's position embeddings.
        relative_positions: for `beit_*` models: `shared` adds one relative position bias to all blocks (BEiT, SimMIM,
            data2vec while they pretrain), `block` one in each, `none` none. Where it is set, tokens are normalised
            before pooling (see `pool`).
        pool: what stands for the image, both after the norm of the tokens: the class token, or the mean of the patches.
        layers: blocks in each stage of a ResNet, ConvNeXt or Swin.
        channels: width of each stage of a ResNet or ConvNeXt (four numbers; before a Bottleneck's expansion).
        heads: attention heads in each stage of a Swin.
        window: side of a Swin's windows.
        zero_init_last: start the last BatchNorm gain of every ResNet or RegNet block at zero (timm does); False starts
            it at one, as the public codes of MoCo, SwAV and DINO do.
        clusters: colours of a pixel transformer's palette.
        layer: blocks of a pixel transformer after which its features are taken; half of them unless it is given.
        embedding: width of the token embeddings of an ALBERT, smaller than that of its layers.
        dropout: of a network for text.
    """

    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    mlp: Literal["mlp", "swiglu"] | None = None
    layer_scale: float | None = None
    qk_norm: bool | None = None
    absolute_positions: bool | None = None
    relative_positions: Literal["none", "shared", "block"] | None = None
    pool: Literal["token", "avg"] | None = None
    layers: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    window: int | None = None
    zero_init_last: bool | None = None
    clusters: int | None = None
    layer: int | None = None
    embedding: int | None = None
    dropout: float | None = None

    def overrides(self) -> dict[str, Any]:
        """Return the fields that are set, JSON-ready."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None}
