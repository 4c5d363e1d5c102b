"""Which tokens of a text are to be predicted, and what stands in their place: drawn on the device, by keys.

Shape suffixes: B rows, L tokens of a row, P tokens of a row to predict at most, W words of a row (at most L), R tokens
that may stand in for another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.ops.keyed import keyed_uniforms

ROUNDS = 6
"""Of settling which n-grams of a row stand: the first ones of a row, which are all that is used, settle in four."""

_LAST = 2**62


@dataclass(frozen=True)
class MaskedTokens:
    """Rows with some tokens to predict.

    Attributes:
        ids_BL: int64, what the network sees; -1 where there is no token.
        places_BP: int64, where in its row each token to predict stands.
        targets_BP: int64, which token it is.
        valid_BP: bool; rows with fewer tokens to predict than P do not use all of their slots.
    """

    ids_BL: Tensor
    places_BP: Tensor
    targets_BP: Tensor
    valid_BP: Tensor


def mask_tokens(
    ids_BL: Tensor,
    ordinary_BL: Tensor,
    key: int,
    index_B: Tensor,
    *,
    mask_id: int,
    random_R: Tensor,
    share: float = 0.15,
    most: int | None = None,
    replaced: float = 0.1,
    kept: float = 0.1,
    begins_BL: Tensor | None = None,
    ngram: int = 1,
) -> MaskedTokens:
    r"""Choose tokens to predict and hide them (BERT, arXiv 1810.04805, Sec. 3.1 and App. A.1).

    Of the n ordinary tokens of a row max(1, round(share n)) are chosen, `most` at most; of these a share `replaced`
    gives way to a random token, `kept` stays, and all others become `mask_id`. What is chosen is a function of the key
    and the row's index alone: the same wherever in a batch or on which process the row is. Nothing waits for the
    device, and shapes depend on L only: P = max(1, round(share L)), `most` at most.

    With `ngram` > 1 runs of 1 to `ngram` whole words are chosen, p(n) proportional to 1/n (ALBERT, arXiv 1909.11942,
    Sec. 4.1): one run for every word, taken in random order unless it overlaps one that was taken; no run crosses a
    special token, and the last one is cut where the number is reached.

    Args:
        ids_BL: int64 tokens, -1 where there is none.
        ordinary_BL: bool, which of them may be chosen.
        key: one for each purpose, copy or step (`imprint.core.rng.seed_of`).
        index_B: int64, the rows' positions in their source.
        mask_id: id of the mask token.
        random_R: int64 ids of the tokens that may stand in for another.
        share: of the ordinary tokens to predict, in (0, 1].
        most: limit of their number in a row, or None.
        replaced: share of the chosen tokens that become a random one.
        kept: share of the chosen tokens that stay.
        begins_BL: bool, which tokens begin a word; None takes every token for a word.
        ngram: most words of a run.

    Raises:
        ConfigError: for shares out of range.
    """
    if not 0.0 < share <= 1.0 or replaced < 0.0 or kept < 0.0 or replaced + kept > 1.0 or ngram < 1:
        raise ConfigError(
            f"mask_tokens: share {share} must lie in (0, 1], replaced {replaced} and kept {kept} must be shares that "
            f"sum to at most 1, and ngram {ngram} must be at least 1."
        )
    length = ids_BL.shape[1]
    slots = max(1, round(share * length))
    slots = min(slots, length) if most is None else max(1, min(slots, length, most))
    drawn = keyed_uniforms(key, index_B, (2 if ngram > 1 else 1) * length + 2 * slots)
    how_BP, which_BP, order_BL = drawn[:, :slots], drawn[:, slots : 2 * slots], drawn[:, 2 * slots : 2 * slots + length]
    place_L = torch.arange(length, device=ids_BL.device)
    # 24 random bits and the place, so that no two are equal.
    first_BL = (order_BL * 2.0**24).long() * length + place_L
    if ngram > 1:
        first_BL = _by_runs(first_BL, drawn[:, 2 * slots + length :], ordinary_BL, begins_BL, ngram)
    first_BL = first_BL.masked_fill(~ordinary_BL, _LAST)
    places_BP = first_BL.topk(slots, dim=1, largest=False, sorted=True).indices
    count_B = ordinary_BL.sum(1)
    wanted_B = torch.minimum((share * count_B.float()).round().long().clamp(1, slots), count_B)
    valid_BP = torch.arange(slots, device=ids_BL.device) < wanted_B[:, None]
    targets_BP = ids_BL.gather(1, places_BP)
    other_BP = random_R[(which_BP * len(random_R)).long().clamp(max=len(random_R) - 1)]
    seen_BP = torch.full_like(targets_BP, mask_id)
    seen_BP = torch.where(how_BP < replaced + kept, targets_BP, seen_BP)
    seen_BP = torch.where(how_BP < replaced, other_BP, seen_BP)
    hidden_BL = ids_BL.scatter(1, places_BP, torch.where(valid_BP, seen_BP, targets_BP))
    return MaskedTokens(hidden_BL, places_BP, targets_BP.clamp(min=0), valid_BP)


def _by_runs(first_BL: Tensor, size_BL: Tensor, ordinary_BL: Tensor, begins_BL: Tensor | None, ngram: int) -> Tensor:
    """Return an order of the tokens in which those of a run follow each other; tokens of no run come after all."""
    length = first_BL.shape[1]
    place_L = torch.arange(length, device=first_BL.device)
    edge_BL = torch.ones_like(ordinary_BL) if begins_BL is None else begins_BL | ~ordinary_BL
    edge_BL = edge_BL | ~_shifted(ordinary_BL, -1, False)  # what follows a special token, and the first one
    word_BL = edge_BL.long().cumsum(1) - 1
    real_BW = torch.zeros_like(ordinary_BL).scatter(1, word_BL, ordinary_BL)
    share_N = 1.0 / torch.arange(1, ngram + 1, device=first_BL.device)
    bound_N = (share_N / share_N.sum()).cumsum(0)
    words_BW = 1 + (size_BL[:, :, None] >= bound_N[:-1]).sum(2)
    reach_BW, open_BW = torch.zeros_like(word_BL), torch.ones_like(real_BW)
    for k in range(ngram):  # how many words follow without a special token between
        open_BW = open_BW & _shifted(real_BW, k, False)
        reach_BW = reach_BW + open_BW
    words_BW = torch.minimum(words_BW, reach_BW)
    rank_BW = first_BL.masked_fill(~real_BW, _LAST)
    alive_BW, owner_BW = real_BW, torch.full_like(rank_BW, _LAST)
    for _ in range(ROUNDS):
        # A run that comes before all that it overlaps stands; those that overlap it are out.
        covered_BW = _cover(rank_BW.masked_fill(~alive_BW, _LAST), words_BW, ngram)
        wins_BW = alive_BW & (_over(covered_BW, words_BW, ngram, _LAST) >= rank_BW)
        owner_BW = torch.minimum(owner_BW, _cover(rank_BW.masked_fill(~wins_BW, _LAST), words_BW, ngram))
        alive_BW = alive_BW & (_over(owner_BW, words_BW, ngram, _LAST) == _LAST)
    owner_BL = owner_BW.gather(1, word_BL)
    return torch.where(owner_BL < _LAST, owner_BL * length + place_L, 2**60 + first_BL)


def _shifted(x_BW: Tensor, by: int, fill: bool | int) -> Tensor:
    """Return what stands `by` places to the right of each place."""
    if by == 0:
        return x_BW
    rest = x_BW.new_full((x_BW.shape[0], min(abs(by), x_BW.shape[1])), fill)
    return torch.cat([x_BW[:, by:], rest], 1) if by > 0 else torch.cat([rest, x_BW[:, :by]], 1)


def _cover(rank_BW: Tensor, words_BW: Tensor, ngram: int) -> Tensor:
    """Return for every word the least rank of the runs that cover it."""
    least = rank_BW
    for k in range(1, ngram):
        least = torch.minimum(least, _shifted(rank_BW.masked_fill(words_BW <= k, _LAST), -k, _LAST))
    return least


def _over(value_BW: Tensor, words_BW: Tensor, ngram: int, fill: int) -> Tensor:
    """Return for every run the least value of the words that it covers."""
    least = value_BW
    for k in range(1, ngram):
        least = torch.minimum(least, _shifted(value_BW, k, fill).masked_fill(words_BW <= k, fill))
    return least
