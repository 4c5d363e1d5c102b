"""Cross entropy of a linear classifier over many classes, without keeping the logits.

Shape suffixes: T tokens, D width, K classes (a vocabulary).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError

LOGITS = 2**22
"""Logits held at a time: 16 MiB of float32."""


def token_cross_entropy(
    hidden_TD: Tensor, weight_KD: Tensor, target_T: Tensor, bias_K: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Return the mean over tokens of -log softmax(h W^T + b)[target], and the share of tokens it gets right.

    Tokens go through in chunks and each chunk leaves only its part of the gradient, so memory grows with T D + K D and
    not with T K. The products run in autocast's precision where it is on; softmax and sums in float32 (float64 for
    float64 inputs). Logits of 1e4 stay finite.

    Args:
        hidden_TD: what the classifier reads.
        weight_KD: one row per class.
        target_T: int64 classes in [0, K).
        bias_K: one value per class, or None.

    Returns:
        0-d loss (0 for no tokens) and 0-d accuracy in [0, 1], which takes no gradient.

    Raises:
        ConfigError: for shapes that do not fit.
    """
    fits = hidden_TD.ndim == 2 and weight_KD.ndim == 2 and hidden_TD.shape[1] == weight_KD.shape[1]
    if not fits or target_T.shape != hidden_TD.shape[:1] or (bias_K is not None and len(bias_K) != len(weight_KD)):
        raise ConfigError(
            f"token_cross_entropy: hidden {tuple(hidden_TD.shape)}, weight {tuple(weight_KD.shape)} and targets "
            f"{tuple(target_T.shape)} do not fit as (T, D), (K, D), (T,)."
        )
    device = hidden_TD.device.type
    product = hidden_TD.dtype
    if torch.is_autocast_enabled(device) and product != torch.float64:
        product = torch.get_autocast_dtype(device)
    loss, accuracy = _TokenCrossEntropy.apply(hidden_TD, weight_KD, bias_K, target_T, product)
    return loss, accuracy


class _TokenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_KD: Tensor, bias_K: Tensor | None, target_T: Tensor, product: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden_TD.dtype == torch.float64 else torch.float32
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_TD) if need_hidden else None
        grad_weight = torch.zeros_like(weight_KD, dtype=dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias_K, dtype=dtype) if need_bias and bias_K is not None else None
        loss = torch.zeros((), dtype=dtype, device=hidden_TD.device)
        right = torch.zeros((), dtype=dtype, device=hidden_TD.device)
        scale = 1.0 / max(1, len(hidden_TD))
        rows = max(1, LOGITS // len(weight_KD))
        with torch.autocast(hidden_TD.device.type, enabled=False):
            weight = weight_KD.to(product)
            for start in range(0, len(hidden_TD), rows):
                part = slice(start, start + rows)
                hidden, target_T1 = hidden_TD[part].to(product), target_T[part, None]
                logits = (hidden @ weight.T).to(dtype)
                if bias_K is not None:
                    logits += bias_K.to(dtype)
                logits -= logits.amax(1, keepdim=True)
                own_T1 = logits.gather(1, target_T1)
                right += (own_T1 >= 0).sum()  # the largest is 0 now; ties count as right
                logits.exp_()
                total_T1 = logits.sum(1, keepdim=True)
                loss += (total_T1.log() - own_T1).sum()
                if not (need_hidden or need_weight or need_bias):
                    continue
                # softmax - one-hot, over T
                logits.mul_(scale / total_T1)
                logits.scatter_add_(1, target_T1, torch.full_like(own_T1, -scale))
                if grad_bias is not None:
                    grad_bias += logits.sum(0)
                slope = logits.to(product)
                if grad_hidden is not None:
                    grad_hidden[part] = (slope @ weight).to(grad_hidden.dtype)
                if grad_weight is not None:
                    grad_weight += slope.T @ hidden
        ctx.dtypes = weight_KD.dtype, None if bias_K is None else bias_K.dtype
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(right)
        accuracy = right.mul_(scale)
        return loss * scale, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        kinds = (None if grads[0] is None else grads[0].dtype, *ctx.dtypes)
        scaled = [None if g is None else (g * upstream).to(d) for g, d in zip(grads, kinds, strict=True)]
        return (*scaled, None, None)
