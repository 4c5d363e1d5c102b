"""One transformer block over the tokens of images of several sizes, packed into one sequence.

Norms, projections, MLP and LayerScale see all tokens at once; attention works within each image, which is attention
under a block-diagonal mask over the sequence (DINOv2, arXiv 2304.07193, Sec. 5; public code `NestedTensorBlock`).
The block's weights are timm's; what is computed is what timm's own forward computes.

Shapes: S tokens of the whole sequence, D width, h heads, d = D / h, B images and T tokens of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbones.attention import plain, queries_keys_values, rotated
from imprint.ops.attention import attend

DROP_FROM = 0.1
"""Samples are left out where the rate is above this (DINOv2, public code); below, only their results are zeroed."""


@dataclass(frozen=True)
class Group:
    """Images of one size in the sequence.

    Attributes:
        batch: B.
        tokens: T.
        rope: rotary positions, (T', d') for all images or (B, 1, T', d') for each; None without.
        bias_hTT: relative position bias, or None.
    """

    batch: int
    tokens: int
    rope: Tensor | None = None
    bias_hTT: Tensor | None = None


def packable(block: nn.Module) -> bool:
    """Tell whether `run_block` knows the block: timm's pre-norm blocks of ViT, Eva and BEiT with softmax attention."""
    from timm.models.beit import Block as BeitBlock
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    return type(block) in (Block, EvaBlock, BeitBlock) and plain(getattr(block, "attn", None))


def run_block(block: nn.Module, x_SD: Tensor, groups: Sequence[Group], drop_samples: bool = False) -> Tensor:
    r"""Return x + drop(attend(x)), then y + drop(mlp(y)), for a packed sequence.

    In training, a rate p of stochastic depth zeroes the result of a share p of the images, or with `drop_samples` and
    p > 0.1 computes a branch f on a random subset of K = max(1, int(B (1 - p))) images of each group only:

        x_b <- x_b + (B / K) f(x_b)  for b in the subset,

    whose mean over subsets is x + f(x) (DINOv2, public code `drop_add_residual_stochastic_depth`).

    Args:
        block: see `packable`.
        x_SD: tokens, group after group, image after image.
        groups: what the sequence holds.
        drop_samples: leave out samples, not only their results.
    """
    inner: Any = block
    x_SD = _add(x_SD, _attend, inner, inner.drop_path1, groups, drop_samples)
    return _add(x_SD, _feed, inner, inner.drop_path2, groups, drop_samples)


def _add(
    x_SD: Tensor,
    branch: Callable[[Any, Tensor, Sequence[Group]], Tensor],
    block: Any,
    path: nn.Module,
    groups: Sequence[Group],
    drop_samples: bool,
) -> Tensor:
    rate = float(getattr(path, "drop_prob", 0.0) or 0.0) if path.training else 0.0
    if drop_samples and rate > DROP_FROM:
        rows_S, scale_S, kept = _subset(groups, rate, x_SD.device)
        out = branch(block, x_SD.index_select(0, rows_S), kept) * scale_S[:, None]
        return x_SD.index_add(0, rows_S, out.to(x_SD.dtype))
    out = branch(block, x_SD, groups)
    if rate:
        draws = [out.new_empty(g.batch, 1).bernoulli_(1 - rate).expand(-1, g.tokens).reshape(-1) for g in groups]
        out = out * (torch.cat(draws) / (1 - rate))[:, None]
    return x_SD + out


def _subset(groups: Sequence[Group], rate: float, device: torch.device) -> tuple[Tensor, Tensor, list[Group]]:
    """Draw images of each group; return their rows of the sequence, the factor on each row, and the smaller groups."""
    rows, scales, kept = [], [], []
    start = 0
    for group in groups:
        count = max(1, int(group.batch * (1 - rate)))
        picked = torch.randperm(group.batch, device=device)[:count]
        places = torch.arange(group.tokens, device=device)
        rows.append((start + picked[:, None] * group.tokens + places).reshape(-1))
        scales.append(torch.full((count * group.tokens,), group.batch / count, device=device))
        rope = group.rope[picked] if group.rope is not None and group.rope.ndim == 4 else group.rope
        kept.append(replace(group, batch=count, rope=rope))
        start += group.batch * group.tokens
    return torch.cat(rows), torch.cat(scales), kept


def _attend(block: Any, x_SD: Tensor, groups: Sequence[Group]) -> Tensor:
    attn = block.attn
    normed_SD = block.norm1(x_SD)
    q_Shd, k_Shd, v_Shd = queries_keys_values(attn, normed_SD)
    parts = []
    start = 0
    for group in groups:
        stop = start + group.batch * group.tokens
        size = (group.batch, group.tokens, q_Shd.shape[1], q_Shd.shape[2])
        q, k, v = (p[start:stop].view(size).transpose(1, 2) for p in (q_Shd, k_Shd, v_Shd))
        if group.rope is not None:
            q, k = rotated(attn, q, group.rope).type_as(v), rotated(attn, k, group.rope).type_as(v)
        bias = None if group.bias_hTT is None else group.bias_hTT.to(q.dtype)
        dropout = attn.attn_drop.p if attn.training else 0.0
        mixed = attend(q, k, v, mask_TS=bias, dropout_p=dropout)
        parts.append(mixed.transpose(1, 2).reshape(stop - start, -1))
        start = stop
    out_SD = parts[0] if len(parts) == 1 else torch.cat(parts)
    if hasattr(attn, "norm"):
        out_SD = attn.norm(out_SD)
    if getattr(attn, "gate", None) is not None:
        out_SD = out_SD * attn.gate(normed_SD).sigmoid()
    return _scaled(block, 1, attn.proj_drop(attn.proj(out_SD)))


def _feed(block: Any, x_SD: Tensor, groups: Sequence[Group]) -> Tensor:
    return _scaled(block, 2, block.mlp(block.norm2(x_SD)))


def _scaled(block: Any, number: int, out_SD: Tensor) -> Tensor:
    """Apply LayerScale, which ViTs keep as a layer and Eva and BEiT as a vector."""
    layer = getattr(block, f"ls{number}", None)
    if layer is not None:
        scaled: Tensor = layer(out_SD)
        return scaled
    gamma = getattr(block, f"gamma_{number}", None)
    return out_SD if gamma is None else gamma * out_SD
