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
    hidden_TD: Tensor,
    weight_KD: Tensor,
    target_T: Tensor,
    bias_K: Tensor | None = None,
    weight_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return the mean over tokens of -log softmax(h W^T + b)[target], and the share of tokens it gets right.

    With `weight_T` both are sums over tokens times their weights, for means over some of the tokens (or over those of
    all processes): a token of weight 0 counts for nothing, gradient included.

    Tokens go through in chunks and each chunk leaves only its part of the gradient, so memory grows with T D + K D and
    not with T K. The products run in autocast's precision where it is on; softmax and sums in float32 (float64 for
    float64 inputs). Logits of 1e4 stay finite.

    Args:
        hidden_TD: what the classifier reads.
        weight_KD: one row per class.
        target_T: int64 classes in [0, K).
        bias_K: one value per class, or None.
        weight_T: floats that take no gradient; None weighs each token 1 / T.

    Returns:
        0-d loss (0 for no tokens) and 0-d accuracy in [0, 1], which takes no gradient.

    Raises:
        ConfigError: for shapes that do not fit.
    """
    _check("token_cross_entropy", hidden_TD, weight_KD, target_T, bias_K)
    if weight_T is not None and weight_T.shape != target_T.shape:
        raise ConfigError(f"token_cross_entropy: {len(target_T)} tokens and weights {tuple(weight_T.shape)}.")
    loss, accuracy = _TokenCrossEntropy.apply(
        hidden_TD, weight_KD, bias_K, target_T, weight_T, _product_dtype(hidden_TD)
    )
    return loss, accuracy


@torch.no_grad()
def token_nats(
    hidden_TD: Tensor, weight_KD: Tensor, target_T: Tensor, bias_K: Tensor | None = None, *, rows: int | None = None
) -> Tensor:
    """Return -log softmax(h W^T + b)[target] of every token, (T,), in nats: `token_cross_entropy` before its mean.

    For evaluation: it takes no gradient. Arguments, precision and errors as there; float32 (float64 for float64).

    Args:
        hidden_TD: what the classifier reads.
        weight_KD: one row per class.
        target_T: int64 classes in [0, K).
        bias_K: one value per class, or None.
        rows: tokens whose logits are held at a time; None holds `LOGITS` numbers.
    """
    _check("token_nats", hidden_TD, weight_KD, target_T, bias_K)
    product = _product_dtype(hidden_TD)
    dtype = torch.float64 if hidden_TD.dtype == torch.float64 else torch.float32
    step = rows or max(1, LOGITS // len(weight_KD))
    nats_T = torch.empty(len(hidden_TD), dtype=dtype, device=hidden_TD.device)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        weight = weight_KD.to(product)
        for start in range(0, len(hidden_TD), step):
            part = slice(start, start + step)
            logits = (hidden_TD[part].to(product) @ weight.T).to(dtype)
            if bias_K is not None:
                logits += bias_K.to(dtype)
            nats_T[part] = logits.logsumexp(1) - logits.gather(1, target_T[part, None]).squeeze(1)
    return nats_T


def _check(name: str, hidden_TD: Tensor, weight_KD: Tensor, target_T: Tensor, bias_K: Tensor | None) -> None:
    fits = hidden_TD.ndim == 2 and weight_KD.ndim == 2 and hidden_TD.shape[1] == weight_KD.shape[1]
    if not fits or target_T.shape != hidden_TD.shape[:1] or (bias_K is not None and len(bias_K) != len(weight_KD)):
        raise ConfigError(
            f"{name}: hidden {tuple(hidden_TD.shape)}, weight {tuple(weight_KD.shape)} and targets "
            f"{tuple(target_T.shape)} do not fit as (T, D), (K, D), (T,)."
        )


def _product_dtype(hidden_TD: Tensor) -> torch.dtype:
    device = hidden_TD.device.type
    if torch.is_autocast_enabled(device) and hidden_TD.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_TD.dtype


class _TokenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_KD: Tensor,
        bias_K: Tensor | None,
        target_T: Tensor,
        weight_T: Tensor | None,
        product: torch.dtype,
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
                share = scale if weight_T is None else weight_T[part, None].to(dtype)
                right += ((own_T1 >= 0) * share).sum()  # the largest is 0 now; ties count as right
                logits.exp_()
                total_T1 = logits.sum(1, keepdim=True)
                loss += ((total_T1.log() - own_T1) * share).sum()
                if not (need_hidden or need_weight or need_bias):
                    continue
                # softmax - one-hot, over T
                logits.mul_(share / total_T1)
                logits.scatter_add_(1, target_T1, torch.zeros_like(own_T1) - share)
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
        return loss, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        kinds = (None if grads[0] is None else grads[0].dtype, *ctx.dtypes)
        scaled = [None if g is None else (g * upstream).to(d) for g, d in zip(grads, kinds, strict=True)]
        return (*scaled, None, None, None)
