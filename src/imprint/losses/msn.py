"""Matching of prototype assignments with mean-entropy maximisation (MSN), streamed over anchors.

A first pass over the anchors gives the loss and the mean assignment, a second one, once the mean over all processes is
known, the gradient. Of all matrices of anchors by prototypes one is kept where it is small; where it is not, cosines
are computed again and memory does not grow with it.

Shape suffixes: V anchor views, B images (b: a part of them), A = V * B anchors (view-major), K prototypes, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError
from imprint.ops.sinkhorn import sinkhorn

Reduce = Callable[[Tensor], Tensor]


KEPT = 2**22
"""Up to so many logarithms of predictions (16 MiB of float32) stay from the first pass; more are computed again."""


def _same(x: Tensor) -> Tensor:
    return x


class MSNLoss(NamedTuple):
    """What `msn_loss` returns; only `loss` carries a gradient.

    Attributes:
        loss: cross_entropy + memax_weight * memax + entropy_weight * entropy.
        cross_entropy: mean H(target, prediction) over anchors, nats.
        memax: log K - H(mean prediction), in [0, log K]; 0 when all prototypes are used alike.
        entropy: mean H(prediction), nats.
        targets_BK: sharpened (and balanced) targets of the B images.
    """

    loss: Tensor
    cross_entropy: Tensor
    memax: Tensor
    entropy: Tensor
    targets_BK: Tensor


def msn_loss(
    anchors_AD: Tensor,
    targets_BD: Tensor,
    prototypes_KD: Tensor,
    *,
    temperature: float = 0.1,
    sharpening: float = 0.25,
    memax_weight: float = 1.0,
    entropy_weight: float = 0.0,
    smoothing: float = 0.0,
    sinkhorn_iterations: int = 0,
    reduce_mean: Reduce = _same,
    reduce_sum: Reduce = _same,
    reduce_max: Reduce = _same,
) -> MSNLoss:
    r"""Return MSN's loss (arXiv 2204.07141, Eq. 1; facebookresearch/msn, src/losses.py).

    With cosines s, p = (1 - e) softmax(s / tau) + e / K for anchors and, for targets, the same raised to 1 / T and
    divided by its sum (Sec. 3), optionally balanced over prototypes by Sinkhorn-Knopp:

        (1 / A) sum_a H(t_a, p_a)  +  lambda (log K - H(mean_a p_a))  +  mu (1 / A) sum_a H(p_a).

    The constant log K is the public code's; the paper leaves it out. Sinkhorn starts from the sharpened probabilities,
    which are not exponentiated again. Prototypes take a gradient from the anchors only.

    With several processes each passes its own rows: the mean of the losses over processes is the loss of the full
    batch, and the gradients averaged over processes are its gradient.

    Args:
        anchors_AD: anchor embeddings of V views one after the other, any scale.
        targets_BD: target embeddings of the same images, any scale; no gradient reaches them.
        prototypes_KD: prototypes, any scale.
        temperature: tau > 0, of both sides.
        sharpening: T in (0, 1]; 1 leaves the targets as they are.
        memax_weight: lambda >= 0.
        entropy_weight: mu >= 0.
        smoothing: e in [0, 1], label smoothing of the prototypes' one-hot labels.
        sinkhorn_iterations: rounds of balancing, 0 for none; the public code takes 3.
        reduce_mean: averages a tensor over processes, without gradient; called once.
        reduce_sum: sums a tensor over processes (Sinkhorn).
        reduce_max: takes the maximum over processes (Sinkhorn).

    Returns:
        See `MSNLoss`; float32 (float64 for float64 anchors). Embeddings of any scale are safe.

    Raises:
        ConfigError: for shapes that do not fit, or settings out of range.
    """
    rows, count, width = anchors_AD.shape[0], targets_BD.shape[0], prototypes_KD.shape[-1]
    fits = all(x.ndim == 2 and x.shape[0] > 0 and x.shape[1] == width for x in (anchors_AD, targets_BD, prototypes_KD))
    if not fits or rows % count:
        raise ConfigError(
            f"msn_loss: anchors {tuple(anchors_AD.shape)}, targets {tuple(targets_BD.shape)} and prototypes "
            f"{tuple(prototypes_KD.shape)} do not fit as (V B, D), (B, D), (K, D)."
        )
    if not (0 < temperature < math.inf and 0 < sharpening <= 1 and 0 <= smoothing <= 1):
        raise ConfigError(
            f"msn_loss: temperature {temperature} must be positive, sharpening {sharpening} in (0, 1] and smoothing "
            f"{smoothing} in [0, 1]."
        )
    if min(memax_weight, entropy_weight, sinkhorn_iterations) < 0:
        raise ConfigError("msn_loss: weights and Sinkhorn iterations must be at least 0.")
    dtype = torch.float64 if anchors_AD.dtype == torch.float64 else torch.float32
    with torch.autocast(anchors_AD.device.type, enabled=False):
        anchors, prototypes = (F.normalize(x.to(dtype), dim=1) for x in (anchors_AD, prototypes_KD))
        with torch.no_grad():
            cosines_BK = F.normalize(targets_BD.to(dtype), dim=1) @ prototypes.t()
            log_BK = _log_probabilities(cosines_BK.div_(temperature), smoothing).div_(sharpening)
            target_BK = torch.log_softmax(log_BK, dim=1)
            if sinkhorn_iterations > 0:
                target_BK = sinkhorn(
                    target_BK, 1.0, sinkhorn_iterations, reduce=reduce_sum, reduce_max=reduce_max, overwrite=True
                )
            else:
                target_BK = target_BK.exp_()
        weights = (memax_weight, entropy_weight)
        loss, parts = _MSN.apply(anchors, prototypes, target_BK, temperature, smoothing, weights, reduce_mean)
    cross_entropy, memax, entropy = parts.unbind(0)
    return MSNLoss(loss, cross_entropy, memax, entropy, target_BK)


class _MSN(torch.autograd.Function):
    """Loss and gradient for unit anchors and prototypes.

    With q = (1 - e) p + e / K and the mean q of all anchors, the derivative by the logits is, up to 1 / (A tau),
    p (sum_k r_k + w - <p, w>) - r with r = t (1 - e) p / q and w = (1 - e) (lambda log mean q - mu log q).
    """

    @staticmethod
    def forward(
        ctx: Any,
        u_AD: Tensor,
        c_KD: Tensor,
        target_BK: Tensor,
        temperature: float,
        smoothing: float,
        weights: tuple[float, float],
        reduce_mean: Reduce,
    ) -> tuple[Tensor, Tensor]:
        (rows, _), (images, width) = u_AD.shape, target_BK.shape
        memax_weight, entropy_weight = weights
        u_VBD = u_AD.unflatten(0, (-1, images))
        scaled_DK = (c_KD / temperature).t()
        chunks = _chunks(rows // images, images, width, u_AD.device)
        kept: list[Tensor] | None = [] if rows * width <= KEPT else None
        sums, mass_K = u_AD.new_zeros(2), u_AD.new_zeros(width)
        for part in chunks:
            log_VbK = _log_probabilities(u_VBD[:, part] @ scaled_DK, smoothing)
            q_VbK = log_VbK.exp()
            mass_K += q_VbK.sum(dim=(0, 1))
            sums[0] -= torch.linalg.vecdot(target_BK[part], log_VbK).sum()
            sums[1] -= torch.linalg.vecdot(q_VbK, log_VbK).sum()
            if kept is not None:
                kept.append(log_VbK)
        mean_K = reduce_mean(mass_K / rows)
        log_mean_K = mean_K.clamp_min(torch.finfo(mean_K.dtype).tiny).log()
        cross_entropy, entropy = (sums / rows).unbind()
        memax = torch.dot(mean_K, log_mean_K) + math.log(width)
        if any(ctx.needs_input_grad[:2]):
            grad_VBD, grad_KD = torch.empty_like(u_VBD), torch.zeros_like(c_KD)
            factor = 1.0 / (rows * temperature)
            for i, part in enumerate(chunks):
                u_VbD = u_VBD[:, part]
                log_VbK = _log_probabilities(u_VbD @ scaled_DK, smoothing) if kept is None else kept[i]
                g_VbK = _logit_gradient(log_VbK, target_BK[part], smoothing, memax_weight * log_mean_K, entropy_weight)
                grad_VBD[:, part] = (g_VbK @ c_KD).mul_(factor)
                grad_KD.addmm_(g_VbK.flatten(0, 1).t(), u_VbD.flatten(0, 1), alpha=factor)
            ctx.save_for_backward(grad_VBD.flatten(0, 1), grad_KD)
        loss = cross_entropy + memax_weight * memax + entropy_weight * entropy
        parts = torch.stack([cross_entropy, memax, entropy])
        ctx.mark_non_differentiable(parts)
        return loss, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_AD, grad_KD = ctx.saved_tensors
        return grad_AD * upstream, grad_KD * upstream, None, None, None, None, None


def _log_probabilities(logits_RK: Tensor, smoothing: float) -> Tensor:
    """Return log((1 - e) softmax(x) + e / K); the logits' memory may be used."""
    log_RK = torch.log_softmax(logits_RK, dim=-1)
    if smoothing == 0.0:
        return log_RK
    return log_RK.exp_().mul_(1.0 - smoothing).add_(smoothing / logits_RK.shape[-1]).log_()


def _logit_gradient(
    log_VbK: Tensor, target_bK: Tensor, smoothing: float, pull_K: Tensor, entropy_weight: float
) -> Tensor:
    """Return the gradient by the logits (up to 1 / (A tau)), see `_MSN`; overwrites `log_VbK`."""
    q_VbK = log_VbK.exp()
    if smoothing == 0.0:
        p_VbK, r = q_VbK, target_bK
    else:
        own_VbK = q_VbK - smoothing / q_VbK.shape[-1]  # (1 - e) p
        p_VbK, r = (own_VbK if smoothing == 1.0 else own_VbK / (1.0 - smoothing)), target_bK * own_VbK / q_VbK
    level = r.sum(dim=-1)
    if entropy_weight:
        w_VbK = log_VbK.mul_(-entropy_weight).add_(pull_K).mul_(1.0 - smoothing)
        level = level - torch.linalg.vecdot(p_VbK, w_VbK)
        return w_VbK.add_(level[..., None]).mul_(p_VbK).sub_(r)
    w_K = pull_K * (1.0 - smoothing)
    level = level - p_VbK @ w_K
    return torch.add(w_K, level[..., None], out=log_VbK).mul_(p_VbK).sub_(r)


def _chunks(views: int, images: int, width: int, device: torch.device) -> list[slice]:
    """Return the images to handle together, all their views at once."""
    size = torch.get_num_threads() * 2**19 if device.type == "cpu" else 2**24
    step = max(1, size // (views * width))
    return [slice(start, min(start + step, images)) for start in range(0, images, step)]
