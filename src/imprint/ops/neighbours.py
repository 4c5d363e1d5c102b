"""Exact nearest neighbours and weighted kNN votes, at the cost of the matrix product and in bounded memory.

Shape suffixes: Q queries, N rows of the bank, D width, K neighbours, C classes.

`nearest` never sorts similarities: of every block of them only the largest is looked at, and the k blocks with the
largest maxima hold the k nearest. The maxima are taken while the product's tile is still in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from imprint.core.errors import ConfigError, DataError, unknown
from imprint.ops.products import rows_by_rows

Weighting = Literal["exp", "softmax"]

_BANK_ROWS = 65_536  # 256 queries times this in float32: 64 MB
_TILE_COLUMNS = 2048


def nearest(
    queries_QD: Tensor,
    bank_ND: Tensor,
    k: int,
    *,
    leave_out_Q: Tensor | None = None,
    scale_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the k rows of the bank with the largest inner product with each query, largest first.

    Args:
        queries_QD: L2-normalised for cosine similarity; float64 is kept, all else is computed in float32.
        bank_ND: rows to search.
        k: 1 to N (N - 1 with `leave_out_Q`).
        leave_out_Q: per query one row of the bank to ignore (itself, when the bank is searched for its own rows).
        scale_N: positive factors on the products of each row; `inverse_norms` makes them cosines, so that a bank in a
            memory map need not be copied to be normalised.

    Returns:
        similarity_QK: descending.
        index_QK: int64 rows of the bank.

    Raises:
        DataError: for widths that differ, or fewer rows than neighbours.
    """
    parts = list(_nearest_chunks(queries_QD, bank_ND, k, leave_out_Q, scale_N))
    return torch.cat([s for _, s, _ in parts]), torch.cat([i for _, _, i in parts])


def knn_scores(
    queries_QD: Tensor,
    bank_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    k: int,
    temperature: float,
    *,
    weighting: Weighting = "exp",
    max_k: int | None = None,
) -> Tensor:
    """Return the votes of the k nearest neighbours per class (Q, C).

    `exp`: score_c = sum over the k nearest of exp(s / T) [label = c] (InstDisc, arXiv 1805.01978, Eq. 8; DINO's code).
    `softmax`: the weights are softmax(s / T) over the `max_k` nearest, of which the first k count (DINOv2's code); rows
    sum to less than 1 for k < max_k.

    Args:
        queries_QD: L2-normalised features.
        bank_ND: L2-normalised features with labels.
        labels_N: int64 in [0, C).
        classes: C.
        k: neighbours that vote.
        temperature: T > 0.
        weighting: see above.
        max_k: for `softmax`; None means k.

    Raises:
        DataError: for shapes that do not fit, or a bank smaller than k.
        ConfigError: for an unknown weighting or a temperature that is not positive.
    """
    depth = max(k, max_k or k)
    _check(bank_ND, labels_N, (temperature,), weighting)
    parts = []
    for _, similarity, index in _nearest_chunks(queries_QD, bank_ND, depth, None):
        labels = labels_N.to(index.device)[index]
        parts.append(next(_votes(similarity, labels, classes, (k,), temperature, weighting)))
    return torch.cat(parts)


def knn_classify(
    queries_QD: Tensor,
    bank_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    ks: Sequence[int],
    temperatures: Sequence[float] = (0.07,),
    *,
    weighting: Weighting = "exp",
    top: int = 5,
    scale_N: Tensor | None = None,
) -> dict[tuple[int, float], Tensor]:
    """Classify by weighted votes for every k and temperature in one pass over the bank.

    Args:
        queries_QD: L2-normalised features.
        bank_ND: L2-normalised features with labels.
        labels_N: int64 in [0, C).
        classes: C.
        ks: numbers of neighbours; with `softmax` the largest is DINOv2's max_k.
        temperatures: T > 0 each.
        weighting: see `knn_scores`.
        top: how many classes to return, at most C.
        scale_N: see `nearest`.

    Returns:
        (k, T) -> int64 (Q, min(top, C)): classes by falling vote.

    Raises:
        DataError: for shapes that do not fit, or a bank smaller than the largest k.
        ConfigError: for an unknown weighting, no k, or a temperature that is not positive.
    """
    _check(bank_ND, labels_N, temperatures, weighting)
    if not ks:
        raise ConfigError("knn_classify: no k given.")
    order = sorted(set(ks))
    kept: dict[tuple[int, float], list[Tensor]] = {(k, t): [] for t in temperatures for k in order}
    for _, similarity, index in _nearest_chunks(queries_QD, bank_ND, order[-1], None, scale_N):
        labels = labels_N.to(index.device)[index]
        for temperature in temperatures:
            for k, votes in zip(order, _votes(similarity, labels, classes, order, temperature, weighting), strict=True):
                kept[k, temperature].append(_ranked(votes, top))
    return {(k, t): torch.cat(kept[k, t]) for t in temperatures for k in ks}


@torch.no_grad()
def inverse_norms(features_ND: Tensor, chunk: int = 4096) -> Tensor:
    """Return 1 / |row| (N) float32, 1e12 for rows of zeros as in `torch.nn.functional.normalize`; NaN stays NaN."""
    return torch.cat([part.float().norm(dim=1).clamp_min(1e-12).reciprocal() for part in features_ND.split(chunk)])


def top_accuracy(ranked_QT: Tensor, labels_Q: Tensor, top: int = 1) -> Tensor:
    """Return the share in [0, 1] of queries whose label is among the first `top` classes; 0-d float64."""
    hits = (ranked_QT[:, :top] == labels_Q.to(ranked_QT.device)[:, None]).any(dim=1)
    return hits.double().mean()


def _ranked(votes_QC: Tensor, top: int) -> Tensor:
    """Return classes by falling vote; those without any follow in the order of their numbers, as in a stable sort."""
    classes = votes_QC.shape[1]
    places = torch.arange(classes, device=votes_QC.device, dtype=votes_QC.dtype)
    return torch.where(votes_QC > 0, votes_QC, -places).topk(min(top, classes), dim=1).indices


def _check(bank_ND: Tensor, labels_N: Tensor, temperatures: Sequence[float], weighting: str) -> None:
    if weighting not in get_args(Weighting):
        raise unknown("kNN weighting", weighting, get_args(Weighting))
    if labels_N.shape != bank_ND.shape[:1]:
        raise DataError(f"kNN: {tuple(labels_N.shape)} labels do not fit a bank of {bank_ND.shape[0]} rows.")
    if not all(0 < t < math.inf for t in temperatures):
        raise ConfigError(f"kNN: temperatures must be positive, got {tuple(temperatures)}.")


def _votes(
    similarity_QK: Tensor, labels_QK: Tensor, classes: int, ks: Sequence[int], temperature: float, weighting: str
) -> Iterator[Tensor]:
    """Yield the votes (Q, C) for each k of the ascending list; the tensor is added to between two of them."""
    logits = similarity_QK / temperature
    weights = logits.softmax(dim=1) if weighting == "softmax" else logits.exp_()
    votes_QC = weights.new_zeros(len(weights), classes)
    done = 0
    for k in ks:
        votes_QC.scatter_add_(1, labels_QK[:, done:k], weights[:, done:k])
        done = k
        yield votes_QC


@torch.no_grad()
def _nearest_chunks(
    queries_QD: Tensor, bank_ND: Tensor, k: int, leave_out_Q: Tensor | None, scale_N: Tensor | None = None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield (queries, similarity, index) for some queries at a time."""
    count = bank_ND.shape[0]
    if queries_QD.ndim != 2 or bank_ND.ndim != 2 or queries_QD.shape[1] != bank_ND.shape[1]:
        raise DataError(f"nearest: queries {tuple(queries_QD.shape)} and bank {tuple(bank_ND.shape)} differ in width.")
    if not 1 <= k <= count - (leave_out_Q is not None):
        raise DataError(f"nearest: {count} rows of the bank do not hold k = {k} neighbours; use a smaller k.")
    dtype = torch.float64 if torch.float64 in (queries_QD.dtype, bank_ND.dtype) else torch.float32
    rows = 256 if bank_ND.device.type == "cpu" else 2048
    width = min(count, _BANK_ROWS)
    # Blocks near sqrt(N / k) balance the pass over block maxima against the gathering of k whole blocks.
    block = min(64, max(4, 2 ** round(math.log2(math.sqrt(width / k)))))
    padded = -(-width // block) * block
    memory = torch.empty(min(rows, max(1, len(queries_QD))) * padded, dtype=dtype, device=bank_ND.device)
    for start in range(0, len(queries_QD), rows):
        chosen = slice(start, min(start + rows, len(queries_QD)))
        query = queries_QD[chosen].to(bank_ND.device, dtype)
        skip = None if leave_out_Q is None else leave_out_Q[chosen].to(bank_ND.device)
        best = query.new_empty(len(query), 0)
        where = torch.empty(len(query), 0, dtype=torch.int64, device=bank_ND.device)
        for first in range(0, count, width):
            bank = bank_ND[first : first + width]
            tile = memory[: len(query) * padded].view(len(query), padded)
            scale = None if scale_N is None else scale_N[first : first + width].to(bank.device, dtype)
            near, index = _best_of_tile(query, bank, tile, block, k, None if skip is None else skip - first, scale)
            best, where = torch.cat([best, near], dim=1), torch.cat([where, index + first], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, order)
        yield chosen, best, where


def _best_of_tile(
    query_qD: Tensor,
    bank_nD: Tensor,
    tile: Tensor,
    block: int,
    k: int,
    skip_q: Tensor | None,
    scale_n: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return candidates (q, M) and their rows, among them the k nearest of this part of the bank."""
    count, dtype = bank_nD.shape[0], query_qD.dtype
    used = -(-count // block) * block
    tile[:, count:used] = -math.inf
    maxima, base, pitch = [], [], []
    for first in range(0, count, _TILE_COLUMNS):
        stop = min(first + _TILE_COLUMNS, count)
        product = rows_by_rows(query_qD, bank_nD[first:stop].to(dtype))
        if scale_n is None:
            tile[:, first:stop] = product
        else:
            torch.mul(product, scale_n[first:stop], out=tile[:, first:stop])
        if skip_q is not None:
            place = (skip_q - first)[:, None]
            column = place.clamp(0, stop - first - 1)
            part = tile[:, first:stop]
            part.scatter_(1, column, part.gather(1, column).masked_fill_(place == column, -math.inf))
        blocks = (min(first + _TILE_COLUMNS, used) - first) // block
        # Block b of this stretch holds every blocks-th column from b on: maxima run along whole vectors.
        maxima.append(tile[:, first : first + blocks * block].unflatten(1, (block, blocks)).amax(dim=1))
        base.append(torch.arange(first, first + blocks, device=tile.device))
        pitch.append(torch.full((blocks,), blocks, device=tile.device))
    peak = torch.cat(maxima, dim=1)
    chosen = peak.topk(min(k, peak.shape[1]), dim=1, sorted=False).indices
    ranks = torch.arange(block, device=tile.device)
    columns = torch.addcmul(torch.cat(base)[chosen][:, :, None], torch.cat(pitch)[chosen][:, :, None], ranks).flatten(1)
    near, order = tile.gather(1, columns).topk(min(k, count), dim=1, sorted=False)
    return near, columns.gather(1, order)
