"""How far down a ranking the right answer stands, without ever holding the table of similarities.

Shape suffixes: Q queries, N rows of the bank, D width, R relevant rows of a query, K retrieved.

All vectors have length 1. Similarities come from float32 matrix products, tile by tile; those too close to the right
answer's to be told apart in float32 are computed again in float64, the same way for every row, so that equal vectors
give equal numbers and an exact tie is seen as one. Ties count against the query: an embedding that maps everything to
one point finds nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.core.errors import DataError

_TILE = 8192
_CLOSE_PER_QUERY = 16_384  # more rows than this within rounding of the right one are ties for all that can be said
_GATHERED = 1 << 22  # numbers gathered at a time for float64


def first_ranks(query_QD: Tensor, group_Q: Tensor, bank_ND: Tensor, group_N: Tensor) -> Tensor:
    """Return the rank, from 1, of the best right answer to each query; right are the rows of the query's group.

    rank_q = 1 + #{n: group_n != group_q, s_qn >= max over m of the group of s_qm}, with s the cosine. R@k of CLIP
    (arXiv 2103.00020, Sec. 3.1) and of retrieval with several captions per image is the share of ranks up to k.

    Args:
        query_QD: of length 1.
        group_Q: int64, at least one row of the bank has it.
        bank_ND: of length 1.
        group_N: int64.

    Returns:
        int64 (Q,), on the CPU.

    Raises:
        DataError: for shapes that do not fit, vectors that are not finite, or a query without a right answer.
    """
    _check(query_QD, group_Q, bank_ND, group_N)
    order = torch.argsort(group_N, stable=True)
    groups = group_N[order].contiguous()
    first = torch.searchsorted(groups, group_Q.contiguous())
    counts = torch.searchsorted(groups, group_Q.contiguous(), right=True) - first
    if bool((counts == 0).any()):
        at = int((counts == 0).nonzero()[0])
        raise DataError(f"query {at} has no right answer in the bank (group {int(group_Q[at])}).")
    margin = _rounding(query_QD.shape[1])
    rows = 256 if bank_ND.device.type == "cpu" else 4096
    ranks = torch.ones(len(query_QD), dtype=torch.int64)
    for start in range(0, len(query_QD), rows):
        part = slice(start, min(start + rows, len(query_QD)))
        query = query_QD[part].to(bank_ND.device, torch.float32)
        mine = group_Q[part].to(bank_ND.device)
        target = _best(query, bank_ND, order, first[part], counts[part])
        ranks[part] += _above(query, mine, target, bank_ND, group_N, margin).cpu()
    return ranks


def recall_at(ranks_Q: Tensor, k: int) -> int:
    """Return how many queries have their right answer among the first `k`."""
    return int((ranks_Q <= k).sum())


def leave_one_out(features_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return (hit at 1, average precision at R) of every row against all others, right meaning the same label.

    AP@R = 1/R sum over i <= R of P(i) [the i-th is right], P(i) the share of right ones among the first i, R the
    number of other rows of the label (MAP@R: Musgrave et al. 2020, arXiv 2003.08505, Sec. 3.2). Among exact ties wrong
    rows come first.

    Args:
        features_ND: of length 1.
        labels_N: int64.

    Returns:
        hit_N: bool; precision_N: float32 in [0, 1]. Rows whose label no other row has are NaN in `precision_N` and
        False in `hit_N`. On the CPU.

    Raises:
        DataError: for shapes that do not fit, or features that are not finite.
    """
    _check(features_ND, labels_N, features_ND, labels_N)
    _, place, sizes = torch.unique(labels_N, return_inverse=True, return_counts=True)
    relevant_N = (sizes[place] - 1).to(features_ND.device)
    count, labels = len(features_ND), labels_N.to(features_ND.device)
    hit = torch.zeros(count, dtype=torch.bool)
    precision = torch.full((count,), float("nan"))
    deepest = int(relevant_N.max()) if count else 0
    if deepest == 0:
        return hit, precision
    rows = max(1, min(256, (1 << 25) // count))
    for start in range(0, count, rows):
        part = torch.arange(start, min(start + rows, count), device=features_ND.device)
        score = features_ND[part].float() @ features_ND.float().T
        # One exact number orders by similarity, in steps of 2^-20 (what float32 can tell), then wrong before right.
        score.mul_(2.0**20).round_().mul_(2.0).add_(labels[None, :] != labels[part][:, None])
        score[torch.arange(len(part), device=score.device), part] = -torch.inf
        right = score.topk(deepest, dim=1).values.remainder_(2.0) == 0
        relevant = relevant_N[part]
        hits = right.cumsum(1)
        places = torch.arange(1, deepest + 1, device=score.device)
        counted = right & (places[None, :] <= relevant[:, None])
        total = (hits / places * counted).sum(1) / relevant
        precision[part.cpu()] = total.float().cpu()
        hit[part.cpu()] = (right[:, 0] & (relevant > 0)).cpu()
    return hit, precision


def _best(query_QD: Tensor, bank_ND: Tensor, order: Tensor, first: Tensor, counts: Tensor) -> Tensor:
    """Return the similarity of the best right answer, float64, by plain sums along each row."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts.cpu())
    within = torch.arange(len(owner)) - torch.repeat_interleave(counts.cpu().cumsum(0) - counts.cpu(), counts.cpu())
    rows = order[(first.cpu()[owner] + within).to(order.device)]
    score = _exact(query_QD, owner.to(query_QD.device), bank_ND, rows.to(bank_ND.device))
    best = torch.full((len(counts),), -torch.inf, dtype=torch.float64, device=score.device)
    return best.scatter_reduce_(0, owner.to(score.device), score, "amax")


def _exact(query_QD: Tensor, owner_P: Tensor, bank_ND: Tensor, rows_P: Tensor) -> Tensor:
    """Return float64 (P,) similarities of pairs (query, row); equal vectors give equal numbers."""
    step = max(1, _GATHERED // query_QD.shape[1])
    parts = [
        (query_QD[owner_P[a : a + step]].double() * bank_ND[rows_P[a : a + step]].double()).sum(1)
        for a in range(0, len(owner_P), step)
    ]
    return torch.cat(parts) if parts else query_QD.new_zeros(0, dtype=torch.float64)


def _above(
    query_qD: Tensor, group_q: Tensor, target_q: Tensor, bank_ND: Tensor, group_N: Tensor, margin: float
) -> Tensor:
    """Return how many rows of other groups are at least as similar as the target, int64 (q,)."""
    above = torch.zeros(len(query_qD), dtype=torch.int64, device=bank_ND.device)
    limit = _CLOSE_PER_QUERY * len(query_qD)
    seen = 0
    for start in range(0, len(bank_ND), _TILE):
        bank = bank_ND[start : start + _TILE]
        score = query_qD @ bank.float().T
        score -= target_q.float()[:, None]
        above += (score > margin).sum(1)
        owner, column = (score.abs_() <= margin).nonzero(as_tuple=True)
        other = group_N[start + column.to(group_N.device)].to(group_q.device) != group_q[owner]
        owner, column = owner[other], column[other]
        if seen <= limit:
            seen += len(owner)
            beats = _exact(query_qD, owner, bank, column) >= target_q[owner]
            owner = owner[beats]
        above += torch.bincount(owner, minlength=len(above))
    return above


def _rounding(width: int) -> float:
    """Return a bound on the error of a float32 dot product of two vectors of length 1, with room to spare."""
    return float(torch.finfo(torch.float32).eps) * (4.0 + 2.0 * width**0.5)


def _check(query_QD: Tensor, group_Q: Tensor, bank_ND: Tensor, group_N: Tensor) -> None:
    if query_QD.ndim != 2 or bank_ND.ndim != 2 or query_QD.shape[1] != bank_ND.shape[1]:
        raise DataError(f"queries {tuple(query_QD.shape)} and bank {tuple(bank_ND.shape)} differ in width.")
    if group_Q.shape != query_QD.shape[:1] or group_N.shape != bank_ND.shape[:1]:
        raise DataError(f"groups {tuple(group_Q.shape)} and {tuple(group_N.shape)} do not fit queries and bank.")
    for name, vectors in (("queries", query_QD), ("bank", bank_ND)):
        if not bool(torch.isfinite(vectors.sum(1)).all()):
            raise DataError(f"retrieval: the {name} are not finite; the encoder gives NaN or infinite vectors.")


def best_rows(query_QD: Tensor, bank_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (cosine, row) of the k most similar rows of each query, falling; vectors of any length.

    Raises:
        DataError: for widths that differ or a bank smaller than k.
    """
    from imprint.ops.neighbours import nearest

    return nearest(F.normalize(query_QD, dim=1), F.normalize(bank_ND, dim=1), k)
