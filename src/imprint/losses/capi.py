"""CAPI's online clustering: balanced assignments of a teacher's patches, and the loss that trains the clusters.

Shape suffixes: N positions, B images of this process, D width, K clusters, P places to predict, L = B P of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.patches import patch_cross_entropy
from imprint.losses.streamed import rows_per_part, streamed_sum

Reduce = Callable[[Tensor], Tensor]

_EPS = 1e-8
_SHIFT = 50.0


def _same(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def balanced_assignments(
    logits_NBK: Tensor,
    temperature: float,
    iterations: int,
    *,
    positionwise: bool = True,
    reduce: Reduce = _same,
    reduce_max: Reduce = _same,
) -> Tensor:
    r"""Return soft assignments of patches to clusters, rows summing to 1, clusters of about the same mass.

    CAPI (arXiv 2502.08769, Sec. 3.2; public code): M = exp(L / temperature + 50 - the largest of each cluster), then
    `iterations` rounds of M <- M / (mass of each cluster + 1e-8), M <- M / (mass of each patch + 1e-8). With
    `positionwise` the balance holds over the images at each position by itself, so a cluster cannot stand for a
    position; otherwise over all patches of all images.

    It differs from `imprint.ops.sinkhorn.sinkhorn` in what is shifted before exp (clusters, not patches) and in the
    1e-8, which change the result in its ninth digit; and it balances many small problems at once.

    Args:
        logits_NBK: logits, position first.
        temperature: > 0.
        iterations: rounds, >= 1.
        positionwise: balance each position by itself.
        reduce: sums masses (N or 1, 1, K) over processes; called `iterations` times.
        reduce_max: takes the maximum of such a tensor over processes; called once.

    Returns:
        (N, B, K), float32 (float64 for float64 logits), without gradient. Logits of 1e4 stay finite.

    Raises:
        ConfigError: for a temperature that is not positive, no rounds, or no (N, B, K) logits.
    """
    if logits_NBK.ndim != 3 or not 0 < temperature < math.inf or iterations < 1:
        raise ConfigError(
            f"balanced_assignments: logits {tuple(logits_NBK.shape)} must be (N, B, K), the temperature {temperature} "
            f"positive and the rounds {iterations} at least 1."
        )
    dtype = torch.float64 if logits_NBK.dtype == torch.float64 else torch.float32
    with torch.autocast(logits_NBK.device.type, enabled=False):
        scores = logits_NBK.detach().to(dtype) / temperature
        if not positionwise:
            scores = scores.flatten(0, 1).unsqueeze(0)
        highest = reduce_max(scores.amax(dim=-2, keepdim=True))
        mass = scores.add_(_SHIFT - highest).exp_()
        for _ in range(iterations):
            mass.div_(reduce(mass.sum(dim=-2, keepdim=True)) + _EPS)
            mass.div_(mass.sum(dim=-1, keepdim=True) + _EPS)
        return mass.view(logits_NBK.shape)


def clustering_loss(logits: Tensor, assignments: Tensor, temperature: float) -> Tensor:
    r"""Return the mean over patches of -sum_k a_k log softmax(l / temperature)_k (arXiv 2502.08769, Sec. 3.2).

    Args:
        logits: (..., K).
        assignments: same shape; no gradient reaches them.
        temperature: > 0.

    Returns:
        0-d loss, float32 (float64 for float64 logits).

    Raises:
        ConfigError: for shapes that differ or a temperature that is not positive.
    """
    if logits.shape != assignments.shape or not 0 < temperature < math.inf:
        raise ConfigError(
            f"clustering_loss: logits {tuple(logits.shape)} and assignments {tuple(assignments.shape)} must have one "
            f"shape, and the temperature {temperature} be positive."
        )
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    with torch.autocast(logits.device.type, enabled=False):
        log_p = F.log_softmax(logits.to(dtype) / temperature, dim=-1)
        return -(assignments.detach().to(dtype) * log_p).sum(dim=-1).mean()


def streamed_clustering(
    unit_NBD: Tensor,
    weight_KD: Tensor,
    bias_K: Tensor | None,
    places_BP: Tensor,
    *,
    target_temp: float,
    prediction_temp: float,
    iterations: int,
    positionwise: bool = True,
    reduce: Reduce = _same,
    reduce_max: Reduce = _same,
) -> tuple[Tensor, Tensor]:
    """Return the clustering loss of all patches, and the assignments of the few that shall be predicted.

    The loss is `clustering_loss` of the logits u W^T + b and their `balanced_assignments`. Positions that are balanced
    by themselves are worked on some at a time: neither logits nor assignments of all N B patches ever exist, only what
    is asked for. Gradients of weight and bias are found with the loss and handed over once.

    Args:
        unit_NBD: the teacher's patches of length 1, position first.
        weight_KD: W.
        bias_K: b, or None.
        places_BP: int64, positions whose assignments are wanted, for each image.
        target_temp: temperature of the assignments.
        prediction_temp: temperature of the loss.
        iterations: rounds of balancing.
        positionwise: see `balanced_assignments`; otherwise all patches are worked on together.
        reduce: see `balanced_assignments`; called for each part.
        reduce_max: see `balanced_assignments`; called for each part.

    Returns:
        0-d loss, and assignments (L, K) without gradient, image by image.
    """
    positions, batch, _ = unit_NBD.shape
    wanted, width = places_BP.numel(), weight_KD.shape[0]
    dtype = torch.float64 if unit_NBD.dtype == torch.float64 else torch.float32
    # Row of the result for each patch; one row more takes what nobody asked for.
    images_B = torch.arange(batch, device=places_BP.device)
    row_M = places_BP.new_full((positions * batch,), wanted)
    row_M.scatter_(0, (places_BP * batch + images_B[:, None]).flatten(), torch.arange(wanted, device=places_BP.device))
    kept = torch.empty(wanted + 1, width, dtype=dtype, device=unit_NBD.device)
    each = 1.0 / (positions * batch)

    def part(logits_mK: Tensor, at: slice) -> Tensor:
        codes_mK = balanced_assignments(
            logits_mK.detach().unflatten(0, (-1, batch)),
            target_temp,
            iterations,
            positionwise=positionwise,
            reduce=reduce,
            reduce_max=reduce_max,
        ).flatten(0, 1)
        kept.index_copy_(0, row_M[at], codes_mK)
        # Codes sum to a little less than 1 (the 1e-8); the cross entropy takes distributions, so the sum is a weight.
        sum_m = codes_mK.sum(dim=-1)
        codes_mK.div_(sum_m.clamp_min(1e-30)[:, None])
        return patch_cross_entropy(logits_mK, codes_mK, sum_m * each, prediction_temp, overwrite=True)

    unit_MD = unit_NBD.to(dtype).flatten(0, 1)
    with torch.autocast(unit_NBD.device.type, enabled=False):
        if bias_K is not None:  # one more number per vector, always 1
            unit_MD = F.pad(unit_MD, (0, 1), value=1.0)
            weight_KD = torch.cat([weight_KD, bias_K[:, None]], dim=1)
    some = max(1, rows_per_part(width, unit_NBD.device) // batch) if positionwise else positions
    loss = streamed_sum(unit_MD, weight_KD.to(dtype), part, some * batch)
    return loss, kept[:wanted]
