"""Swapped prediction of cluster assignments over views (SwAV).

Shape suffixes: V views, W views with codes, B images, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.distillation import cross_entropy_to, entropy


def swapped_prediction(
    scores_VBK: Tensor | Sequence[Tensor], codes_WBK: Tensor, temperature: float, *, overwrite: bool = False
) -> Tensor:
    r"""Return SwAV's loss (arXiv 2006.09882, Eqs. 1, 2 and 6): every view predicts the codes of the other ones.

    The mean over images and pairs v != w of -sum_k q_w,k log softmax(s_v / tau)_k, where the first W views are those
    the codes were computed from. The public code takes the mean over the V - 1 other views, then over the W codes: the
    same, since every code has as many others. The targets of a view enter by their sum, so one pass over the scores
    gives the loss and its gradient; that is kept and no probability is. Backward can run once per forward.

    Args:
        scores_VBK: similarities to the prototypes, or several (V_i, B, K) in order, V = sum V_i >= W.
        codes_WBK: q, rows that sum to 1 (`ops.sinkhorn`); no gradient reaches them.
        temperature: tau > 0.
        overwrite: write the gradient over the scores, which must not be read afterwards and must not be leaves.

    Returns:
        0-d loss, float32 (float64 for float64 scores); gradient reaches the scores only. Scores of 1e4 stay finite in
        any floating dtype. log K for uniform predictions.

    Raises:
        ConfigError: for shapes that do not fit, no pair of different views, or a temperature that is not positive.
    """
    parts = (scores_VBK,) if isinstance(scores_VBK, Tensor) else tuple(scores_VBK)
    views = sum(part.shape[0] for part in parts)
    if codes_WBK.ndim != 3 or any(part.shape[1:] != codes_WBK.shape[1:] for part in parts):
        raise ConfigError(
            f"swapped_prediction: scores {[tuple(p.shape) for p in parts]} and codes {tuple(codes_WBK.shape)} do not "
            "fit as (V, B, K) and (W, B, K)."
        )
    count, batch, _ = codes_WBK.shape
    if not 1 <= count <= views or views < 2 or batch == 0:
        raise ConfigError(
            f"swapped_prediction: {views} views with codes of {count} and {batch} images leave no code to predict from "
            "another view."
        )
    if not 0 < temperature < math.inf:
        raise ConfigError(f"swapped_prediction: temperature {temperature} must be positive.")
    if overwrite and any(part.is_leaf and part.requires_grad for part in parts):
        raise ConfigError("swapped_prediction: overwrite=True would destroy a leaf; pass a computed tensor.")
    codes = codes_WBK.detach()
    dtype = torch.float64 if parts[0].dtype == torch.float64 else torch.float32

    def targets(rows: slice) -> Tensor:
        return codes[:, rows].to(dtype, copy=True)

    return cross_entropy_to(targets, count, parts, temperature, overwrite=overwrite)


@torch.no_grad()
def code_statistics(codes_WBK: Tensor, rows: int = 64) -> dict[str, Tensor]:
    """Return how soft the codes are and how many prototypes they use, detached 0-d.

    Args:
        codes_WBK: assignments, rows that sum to 1.
        rows: images whose entropy is taken, the first ones: enough for a monitor.

    Returns:
        `code_entropy`: mean entropy of a code in nats, 0 (one prototype) to log K (undecided). `prototypes_used`:
        share of the prototypes that are the largest of some code, of as many as the W B codes could use, min(K, W B);
        near 1 / that number when one prototype takes all images.
    """
    width = codes_WBK.shape[-1]
    best = codes_WBK.argmax(dim=-1).flatten()
    used = codes_WBK.new_zeros(width).index_fill_(0, best, 1.0).sum()
    return {
        "code_entropy": entropy(codes_WBK[:, :rows]).mean(),
        "prototypes_used": used / min(width, max(1, best.numel())),
    }
