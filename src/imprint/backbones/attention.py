"""Attention probabilities of one timm block, computed again from its own projections.

Shapes: B images, T tokens, D width, h heads, d = D / h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imprint.core.errors import ConfigError


def attention_probabilities(block: nn.Module, tokens_BTD: Tensor, rope: Tensor | None, name: str) -> Tensor:
    """Return softmax(q k^T / sqrt(d)), shape (B, h, T, T), for the attention inside `block`.

    Args:
        block: a timm transformer block with an attention layer `attn` that projects to queries and keys.
        tokens_BTD: input of the block.
        rope: rotary positions given to the block, or None.
        name: the encoder's name, for the error.

    Raises:
        ConfigError: when the block's attention is of a kind that has no such probabilities.
    """
    from timm.layers.attention import Attention, AttentionRope
    from timm.models.eva import EvaAttention, EvaBlockPostNorm
    from timm.models.vision_transformer import ResPostBlock

    attn: Any = getattr(block, "attn", None)
    if not isinstance(attn, Attention | AttentionRope | EvaAttention):
        kind = type(block if attn is None else attn).__name__
        raise ConfigError(f"'{name}' attends through {kind}, whose probabilities cannot be shown; choose a plain ViT.")
    inner: Any = block
    x_BTD = tokens_BTD if isinstance(block, ResPostBlock | EvaBlockPostNorm) else inner.norm1(tokens_BTD)
    q_BhTd, k_BhTd = _queries_and_keys(attn, x_BTD)
    if rope is not None:
        q_BhTd, k_BhTd = _rotate(attn, q_BhTd, rope), _rotate(attn, k_BhTd, rope)
    return ((q_BhTd * attn.scale) @ k_BhTd.transpose(-2, -1)).softmax(dim=-1)


def _queries_and_keys(attn: Any, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, _ = x_BTD.shape
    if attn.qkv is None:
        projected = [attn.q_proj(x_BTD), attn.k_proj(x_BTD)]
        q, k = (p.reshape(batch, tokens, -1, attn.head_dim).transpose(1, 2) for p in projected)
        if k.shape[1] != q.shape[1]:  # grouped-query attention shares each key head among neighbouring query heads
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    else:
        qkv = attn.qkv(x_BTD)
        if getattr(attn, "q_bias", None) is not None:  # EVA keeps its biases apart, the key's being zero
            qkv = qkv + torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        q, k, _ = qkv.reshape(batch, tokens, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.q_norm(q), attn.k_norm(k)


def _rotate(attn: Any, x_BhTd: Tensor, rope: Tensor) -> Tensor:
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    prefix = attn.num_prefix_tokens
    turned = apply_rot_embed_cat(x_BhTd[:, :, prefix:], rope, half=getattr(attn, "rotate_half", False))
    return torch.cat([x_BhTd[:, :, :prefix], turned], dim=2).type_as(x_BhTd)
