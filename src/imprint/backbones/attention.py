"""Inside timm's attention layers: queries, keys and values of each kind, and a block's attention probabilities.

Shapes: B images, T tokens, D width, h heads, d = D / h; * any leading sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from imprint.core.errors import ConfigError


def attention_probabilities(
    block: nn.Module, tokens_BTD: Tensor, rope: Tensor | None, name: str, bias_hTT: Tensor | None = None
) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias), shape (B, h, T, T), for the attention inside `block`.

    Args:
        block: a timm transformer block with an attention layer `attn` that projects to queries and keys.
        tokens_BTD: input of the block.
        rope: rotary positions given to the block, or None.
        name: the encoder's name, for the error.
        bias_hTT: relative position bias, or None.

    Raises:
        ConfigError: when the block's attention is of a kind that has no such probabilities.
    """
    from timm.models.eva import EvaBlockPostNorm
    from timm.models.vision_transformer import ResPostBlock

    attn: Any = getattr(block, "attn", None)
    if not plain(attn):
        kind = type(block if attn is None else attn).__name__
        raise ConfigError(f"'{name}' attends through {kind}, whose probabilities cannot be shown; choose a plain ViT.")
    inner: Any = block
    x_BTD = tokens_BTD if isinstance(block, ResPostBlock | EvaBlockPostNorm) else inner.norm1(tokens_BTD)
    q_BhTd, k_BhTd = (p.transpose(-3, -2) for p in queries_keys_values(attn, x_BTD)[:2])
    if rope is not None:
        q_BhTd, k_BhTd = rotated(attn, q_BhTd, rope), rotated(attn, k_BhTd, rope)
    scores = (q_BhTd * attn.scale) @ k_BhTd.transpose(-2, -1)
    return (scores if bias_hTT is None else scores + bias_hTT).softmax(dim=-1)


def plain(attn: object) -> bool:
    """Tell whether a layer is one of timm's softmax attentions: of ViT, Eva (with or without rotation) or BEiT."""
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.beit import Attention as BeitAttention
    from timm.models.eva import EvaAttention

    return isinstance(attn, Attention | AttentionRope | EvaAttention | BeitAttention)


def queries_keys_values(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v, each (*, h, d), of tokens (*, D) under one of the layers that `plain` knows, norms applied."""
    size = x.shape[:-1]
    if attn.qkv is None:
        q, k, v = (p(x).reshape(*size, -1, attn.head_dim) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        if k.shape[-2] != q.shape[-2]:  # grouped-query attention shares each key head among neighbouring query heads
            k, v = (p.repeat_interleave(q.shape[-2] // p.shape[-2], dim=-2) for p in (k, v))
    else:
        if getattr(attn, "q_bias", None) is not None:  # EVA and BEiT keep their biases apart, the key's being zero
            qkv = linear(x, attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)))
        else:
            qkv = attn.qkv(x)
        q, k, v = qkv.reshape(*size, 3, attn.num_heads, -1).unbind(-3)
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    return q, k, v


def rotated(attn: Any, x_BhTd: Tensor, rope: Tensor) -> Tensor:
    """Return queries or keys with rotary positions applied to all but the prefix tokens."""
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    prefix = attn.num_prefix_tokens
    turned = apply_rot_embed_cat(x_BhTd[:, :, prefix:], rope, half=getattr(attn, "rotate_half", False))
    return torch.cat([x_BhTd[:, :, :prefix], turned], dim=2).type_as(x_BhTd)
