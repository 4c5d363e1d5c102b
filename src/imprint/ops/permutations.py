"""Sets of permutations that lie far apart: the classes of a jigsaw puzzle.

Shape suffixes: A all permutations, P chosen ones, T places of a permutation.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from imprint.core.errors import ConfigError

MOST_PLACES = 9
"""Of more places there are too many permutations to list (9! = 362,880, 16! = 2e13)."""


def all_permutations(places: int) -> Tensor:
    """Return every permutation of range(places) in lexicographic order, uint8 (places!, places)."""
    known = torch.zeros(1, 0, dtype=torch.uint8)
    for size in range(1, places + 1):
        first = torch.arange(size, dtype=torch.uint8).repeat_interleave(known.shape[0])
        rest = known.repeat(size, 1)
        known = torch.cat([first[:, None], rest + (rest >= first[:, None])], dim=1)
    return known


def permutation_set(places: int, count: int, *, seed: int = 0, spread: Literal["mean", "min"] = "mean") -> Tensor:
    """Return permutations chosen greedily for large Hamming distances (Jigsaw, arXiv 1603.09246, Algorithm 1).

    The first is drawn at random; each further one is, among all that are left, the farthest from those chosen so far:
    the one of largest mean distance (the paper's, and the public code's `max`), or of largest minimum distance. Where
    several are as far, the other measure decides, and then a random order. The same arguments give the same set.

    Distances are kept up to date for all candidates at once: each half of a permutation is a number, and a table says
    for each number how many places it shares with the one just chosen.

    Args:
        places: T, at most 9.
        count: P, at least 2 and at most T!.
        seed: of the first permutation and of the order among equals.
        spread: what is maximised first.

    Returns:
        int64 (P, T), distinct rows.

    Raises:
        ConfigError: for more permutations than there are, fewer than two, or too many places to list them.
    """
    if not 1 <= places <= MOST_PLACES:
        raise ConfigError(
            f"permutation_set: {places} places; all permutations are listed, which {MOST_PLACES} places allow at most "
            "(a grid of 3 x 3 tiles)."
        )
    if not 2 <= count <= math.factorial(places):
        raise ConfigError(
            f"permutation_set: {count} permutations of {places} places; choose 2 to {math.factorial(places)}."
        )
    return _chosen(places, count, seed, spread).clone()


@functools.lru_cache(maxsize=8)
def _chosen(places: int, count: int, seed: int, spread: str) -> Tensor:
    listed_AT = all_permutations(places)
    # Without order of their own: the first of equals is then a random one.
    listed_AT = listed_AT[torch.randperm(listed_AT.shape[0], generator=torch.Generator().manual_seed(seed))]
    half = places // 2
    codes = [_codes(listed_AT[:, :half], places), _codes(listed_AT[:, half:], places)]
    total_A = torch.zeros(listed_AT.shape[0], dtype=torch.int32)  # places shared with the chosen ones, summed
    closest_A = torch.zeros_like(total_A)  # the most shared with any of them
    # One number for both measures; the second never outweighs a step of the first.
    weights = (places + 1, 1) if spread == "mean" else (1, places * count + 1)
    taken, newest = [0], 0
    for _ in range(count - 1):
        chosen = listed_AT[newest].tolist()
        shared_A = _shared(chosen[:half], places).index_select(0, codes[0])
        shared_A += _shared(chosen[half:], places).index_select(0, codes[1])
        total_A += shared_A
        torch.maximum(closest_A, shared_A, out=closest_A)
        score_A = (total_A * weights[0]).add_(closest_A, alpha=weights[1])
        # A chosen one shares all its places with itself, but its sum may still be small.
        score_A[taken] = torch.iinfo(torch.int32).max
        newest = int((score_A == score_A.min()).nonzero()[0])
        taken.append(newest)
    return listed_AT[taken].long()


def _codes(digits_AT: Tensor, base: int) -> Tensor:
    """Return rows of digits as numbers, int32 (A,)."""
    code_A = torch.zeros(digits_AT.shape[0], dtype=torch.int32)
    for digit_A in digits_AT.unbind(1):
        code_A = code_A * base + digit_A
    return code_A


def _shared(chosen: list[int], base: int) -> Tensor:
    """Return for every code of as many digits how many of them are the chosen ones, int32."""
    table = torch.zeros(1, dtype=torch.int32)
    for digit in chosen:
        table = (table[:, None] + (torch.arange(base) == digit)).flatten()
    return table


def hamming_distances(permutations_PT: Tensor) -> tuple[int, float]:
    """Return the smallest and the mean number of places in which two different rows differ.

    Args:
        permutations_PT: integers, P >= 2.
    """
    count, places = permutations_PT.shape
    hot_PK = torch.nn.functional.one_hot(permutations_PT.long(), places).flatten(1).float()
    most, total = 0, 0.0
    for start in range(0, count, 1024):
        shared = hot_PK[start : start + 1024] @ hot_PK.T
        rows = torch.arange(shared.shape[0])
        shared[rows, rows + start] = 0.0  # a row and itself
        most, total = max(most, int(shared.max())), total + float(shared.double().sum())
    return places - most, places - total / (count * (count - 1))
