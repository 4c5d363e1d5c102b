"""The supervised contrastive loss in memory linear in the batch.

Shape suffixes: B images of this process, A of all processes, V views, D width, N anchors, M = V A keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imprint.core.errors import ConfigError

Contrast = Literal["all", "one"]


def supcon(
    features_BVD: Tensor,
    labels_B: Tensor | None = None,
    *,
    temperature: float = 0.1,
    base_temperature: float = 0.07,
    contrast: Contrast = "all",
    features_all: Tensor | None = None,
    labels_all: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    r"""Return the supervised contrastive loss L_out (arXiv 2004.11362, Eq. 2), mean over the anchors.

    l(i) = -(tau / tau_base) 1/|P(i)| sum_{p in P(i)} log( exp(u_i u_p / tau) / sum_{a != i} exp(u_i u_a / tau) )

    P(i) are all other views that share the anchor's label, those of the same image included. The factor tau / tau_base
    is that of the public code (HobbitLong/SupContrast, losses.py), not of the paper's equation: `base_temperature`
    equal to `temperature` removes it, 1 gives the scaling of google-research/supcon. An anchor without any positive
    contributes 0 and still counts in the mean. Without labels, and for images whose label is negative (unlabelled),
    the positives are the other views of the same image: SimCLR's loss over V views.

    Time is that of the matrix products: tiles of similarities and of equal labels are made twice, none is kept.

    With several processes each passes its own anchors and the keys and labels of all: the mean of the losses over
    processes is the loss of the full batch, and the gradients that reach `features_all`, summed over processes,
    complete it.

    Args:
        features_BVD: embeddings, ALREADY L2-normalised along D; they are used as they are.
        labels_B: int64 class per image, or None.
        temperature: tau > 0.
        base_temperature: tau_base > 0.
        contrast: anchors are `all` views, or the first (`one`) of every image; keys are all views either way.
        features_all: embeddings of all processes (A, V, D), or None for this process alone.
        labels_all: labels of all processes (A,), with `features_all` and `labels_B`.
        offset: row of `features_all` that holds this process's first image.

    Returns:
        0-d loss, float32 (float64 for float64 inputs); gradients reach anchors and keys.

    Raises:
        ConfigError: for shapes that do not fit together, one view without labels, an unknown contrast, or
            temperatures that are not positive numbers.
    """
    keys_AVD = features_BVD if features_all is None else features_all
    _check(features_BVD, keys_AVD, labels_B, labels_all, features_all is not None, offset)
    if contrast not in ("all", "one"):
        raise ConfigError(f"supcon: contrast must be 'all' or 'one', got '{contrast}'.")
    if not all(math.isfinite(t) and t > 0 for t in (temperature, base_temperature)):
        raise ConfigError(f"supcon: temperatures must be positive numbers, got {temperature}, {base_temperature}.")
    batch, images, views = features_BVD.shape[0], *keys_AVD.shape[:2]
    labels_A = labels_B if labels_all is None else labels_all
    alone_A = torch.arange(-1, -1 - images, -1, device=features_BVD.device)  # a name that no other image has
    labels_A = alone_A if labels_A is None else torch.where(labels_A < 0, alone_A, labels_A)
    anchors = views if contrast == "all" else 1
    with torch.autocast(features_BVD.device.type, enabled=False):
        u_ND = _rows(features_BVD[:, :anchors])
        plan = _Plan(batch, images, offset, temperature, labels_A)
        loss: Tensor = _SupCon.apply(u_ND, _rows(keys_AVD), plan)
    return loss * (temperature / base_temperature)


class _Plan(NamedTuple):
    """Where anchors and keys lie: both are view after view, each view's images in order."""

    batch: int
    images: int
    offset: int
    temperature: float
    labels_A: Tensor


class _SupCon(torch.autograd.Function):
    """mean_i [|P(i)| > 0] (log Z_i - mean_{p in P(i)} s_ip), s = u u' / tau, Z_i = sum over all keys but i itself.

    d loss / d s_ia = w_i (exp(s_ia) / Z_i - [a in P(i)] / |P(i)|), w_i = [|P(i)| > 0] / N.
    """

    @staticmethod
    def forward(ctx: Any, u_ND: Tensor, keys_MD: Tensor, plan: _Plan) -> Tensor:
        rows = u_ND.shape[0]
        sums_N, near_N, count_N = (u_ND.new_zeros(rows) for _ in range(3))
        shift_N = torch.full_like(sums_N, -math.inf)
        for i, j, tile, same in _tiles(u_ND, keys_MD, plan):
            count_N[i] += same.sum(dim=1)
            near_N[i] += torch.linalg.vecdot(tile, same)
            # Only now does the anchor leave the sum: -inf times 0 would have been NaN.
            if (itself := _itself(i, plan, j)) is not None:
                tile.diagonal(itself).fill_(-math.inf)
            old, shift = shift_N[i], torch.maximum(shift_N[i], tile.amax(dim=1))
            finite = shift.clamp_min(torch.finfo(shift.dtype).min)  # a tile may hold nothing but the anchor itself
            sums_N[i] *= torch.exp(old - finite)
            shift_N[i] = shift
            sums_N[i] += tile.sub_(finite[:, None]).exp_().sum(dim=1)
        log_N = sums_N.log() + shift_N
        has_N = count_N > 0
        inverse_N = count_N.clamp_min(1.0).reciprocal_()
        ctx.plan = plan
        ctx.save_for_backward(u_ND, keys_MD, log_N, has_N, inverse_N)
        return torch.where(has_N, log_N - near_N * inverse_N, 0.0).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        u_ND, keys_MD, log_N, has_N, inverse_N = ctx.saved_tensors
        plan: _Plan = ctx.plan
        # Anchors without a positive: exp(s - inf) = 0, so they push nothing (their sums may even be empty).
        log_N = torch.where(has_N, log_N, math.inf)
        grad_ND = torch.zeros_like(u_ND) if ctx.needs_input_grad[0] else None
        grad_MD = torch.zeros_like(keys_MD) if ctx.needs_input_grad[1] else None
        for i, j, tile, same in _tiles(u_ND, keys_MD, plan):
            if (itself := _itself(i, plan, j)) is not None:
                tile.diagonal(itself).fill_(-math.inf)
            tile.sub_(log_N[i, None]).exp_().addcmul_(same, inverse_N[i, None], value=-1.0)
            if grad_ND is not None:
                grad_ND[i].addmm_(tile, keys_MD[j])
            if grad_MD is not None:
                grad_MD[j].addmm_(tile.t(), u_ND[i])
        scale = upstream / (u_ND.shape[0] * plan.temperature)
        return (
            None if grad_ND is None else grad_ND.mul_(scale),
            None if grad_MD is None else grad_MD.mul_(scale),
            None,
        )


def _tiles(u_ND: Tensor, keys_MD: Tensor, plan: _Plan) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield (anchor rows, key rows, logits, 1 for positives and 0 else); both tiles' memory is reused by the next.

    A tile stays within one view of anchors, so that anchors meet themselves on one diagonal of it.
    """
    keys, side = keys_MD.shape[0], _side(u_ND.device)
    own_N = plan.labels_A[plan.offset : plan.offset + plan.batch].repeat(u_ND.shape[0] // plan.batch)
    other_M = plan.labels_A.repeat(keys // plan.images)
    scaled_ND = u_ND / plan.temperature
    memory = u_ND.new_empty(2, min(side, plan.batch) * min(side, keys))
    for view in range(0, u_ND.shape[0], plan.batch):
        for start in range(view, view + plan.batch, side):
            i = slice(start, min(start + side, view + plan.batch))
            for first in range(0, keys, side):
                j = slice(first, min(first + side, keys))
                height, width = i.stop - i.start, j.stop - j.start
                tile, same = (part[: height * width].view(height, width) for part in memory)
                torch.mm(scaled_ND[i], keys_MD[j].t(), out=tile)
                same.copy_(own_N[i, None] == other_M[None, j])
                if (itself := _itself(i, plan, j)) is not None:
                    same.diagonal(itself).zero_()
                yield i, j, tile, same


def _itself(i: slice, plan: _Plan, j: slice) -> int | None:
    """Return the diagonal of tile (i, j) on which anchors meet themselves, or None."""
    view = i.start // plan.batch
    diagonal = view * plan.images + plan.offset + i.start - view * plan.batch - j.start
    return diagonal if i.start - i.stop < diagonal < j.stop - j.start else None


def _side(device: torch.device) -> int:
    """Return the side of a tile: two of them stay in a CPU's cache; a GPU wants larger kernels."""
    return 512 if device.type == "cpu" else 4096


def _rows(features_BVD: Tensor) -> Tensor:
    """Return (V B, D), view after view, in float32 (float64 for float64)."""
    wide = features_BVD if features_BVD.dtype == torch.float64 else features_BVD.float()
    return wide.transpose(0, 1).flatten(0, 1)


def _check(
    features: Tensor, keys: Tensor, labels: Tensor | None, labels_all: Tensor | None, gathered: bool, offset: int
) -> None:
    if features.ndim != 3 or features.shape[0] == 0 or keys.ndim != 3 or keys.shape[1:] != features.shape[1:]:
        raise ConfigError(
            f"supcon: features must be non-empty (B, V, D) and gathered ones (A, V, D), got {tuple(features.shape)} "
            f"and {tuple(keys.shape)}."
        )
    if not 0 <= offset <= keys.shape[0] - features.shape[0]:
        raise ConfigError(f"supcon: {features.shape[0]} own images at offset {offset} are not in {keys.shape[0]}.")
    if labels is None and features.shape[1] == 1:
        raise ConfigError("supcon: one view and no labels leave no positive pair; pass labels or two views.")
    if (labels is not None and labels.shape != features.shape[:1]) or (
        labels_all is not None and labels_all.shape != keys.shape[:1]
    ):
        raise ConfigError(f"supcon: labels must be one per image: ({features.shape[0]},) and ({keys.shape[0]},).")
    if gathered and (labels is None) != (labels_all is None):
        raise ConfigError("supcon: gathered features need the labels of all processes, too (labels_all).")
    if labels_all is not None and not gathered:
        raise ConfigError("supcon: labels_all comes with features_all.")
