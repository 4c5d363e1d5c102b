"""Softmax attention, by the fastest of two ways.

Shapes: * leading sizes, T queries, S keys, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

MOST = 2**17
"""Queries times keys up to which a CPU multiplies bfloat16 matrices out: about 360 tokens."""


def attend(
    q_Td: Tensor,
    k_Sd: Tensor,
    v_Sd: Tensor,
    *,
    mask_TS: Tensor | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + mask) v, shape (*, T, d).

    PyTorch's fused attention but for bfloat16 on a CPU, where it is slow on short sequences: forward and backward of
    128 images of 65 tokens and 4 heads took 84 ms with it and 13 ms as two batched products (one core with AVX512-BF16;
    16 images of 197 tokens: 41 and 10 ms). What is multiplied out keeps a (*, T, S) matrix, so sequences are bounded.

    Args:
        q_Td: queries (*, T, d).
        k_Sd: keys (*, S, d).
        v_Sd: values (*, S, d).
        mask_TS: added to the scores where it is of floats; where it is bool, True = may look. Broadcast to (*, T, S).
        causal: query i sees the keys up to i (T = S).
        dropout_p: rate of dropped probabilities.
    """
    short = q_Td.shape[-2] * k_Sd.shape[-2] <= MOST
    if not (short and q_Td.device.type == "cpu" and q_Td.dtype == k_Sd.dtype == v_Sd.dtype == torch.bfloat16):
        return scaled_dot_product_attention(q_Td, k_Sd, v_Sd, attn_mask=mask_TS, is_causal=causal, dropout_p=dropout_p)
    with torch.autocast("cpu", enabled=False):
        scores_TS = (q_Td * q_Td.shape[-1] ** -0.5) @ k_Sd.transpose(-2, -1)
        if causal:
            later_TS = torch.ones(scores_TS.shape[-2:], dtype=torch.bool).triu_(1)
            scores_TS = scores_TS.masked_fill(later_TS, -torch.inf)
        if mask_TS is not None:
            bool_mask = mask_TS.dtype == torch.bool
            scores_TS = scores_TS.masked_fill(~mask_TS, -torch.inf) if bool_mask else scores_TS + mask_TS.to(q_Td.dtype)
        shares_TS = scores_TS.softmax(-1)  # computed in float32 inside, rounded once
        return (dropout(shares_TS, dropout_p) if dropout_p else shares_TS) @ v_Sd
