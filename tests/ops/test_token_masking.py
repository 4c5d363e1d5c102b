"""Which tokens are hidden, against sequential oracles and confidence bounds."""

import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.core.rng import seed_of
from imprint.ops import token_masking
from imprint.ops.keyed import keyed_uniforms
from imprint.ops.token_masking import mask_tokens

MASK, FIRST, VOCABULARY = 4, 5, 205
RANDOM = torch.arange(FIRST, VOCABULARY)


def rows(count=400, length=64, seed=0):
    """Rows [CLS] a [SEP] b [SEP] of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST, VOCABULARY, (count, length), generator=generator)
    size = torch.randint(length // 2, length + 1, (count, 1), generator=generator)
    place = torch.arange(length)
    ids[:, 0] = 2
    ids[place == size // 2] = 3
    ids[place == size - 1] = 3
    return ids.masked_fill(place >= size, -1)


def masked(ids, key=7, index=None, **settings):
    index = torch.arange(len(ids)) if index is None else index
    return mask_tokens(ids, ids >= FIRST, key, index, mask_id=MASK, random_R=RANDOM, **settings)


def chosen(ids, made):
    places = torch.zeros_like(ids, dtype=torch.bool)
    return places.scatter(1, made.places_BP, made.valid_BP)


def within(share, expected, count):
    """Four standard errors: one time in 16,000 by chance."""
    return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_the_number_is_that_of_the_rule_in_every_row():
    ids = rows()
    made = masked(ids)
    for row, own in enumerate(made.valid_BP.sum(1).tolist()):
        assert own == max(1, round(0.15 * int((ids[row] >= FIRST).sum())))
    assert made.places_BP.shape == (400, round(0.15 * 64))
    assert masked(ids, most=3).valid_BP.sum(1).eq(3).all()
    few = torch.tensor([[2, 9, 3, -1, -1, -1, -1, -1], [2, 3, 3, -1, -1, -1, -1, -1]])
    assert masked(few).valid_BP.sum(1).tolist() == [1, 0]


def test_special_tokens_and_padding_are_never_chosen_nor_changed():
    ids = rows()
    for settings in ({}, {"ngram": 3}):
        made = masked(ids, **settings)
        places = chosen(ids, made)
        assert not places[ids < FIRST].any()
        assert torch.equal(made.ids_BL[~places], ids[~places])
        assert torch.equal(ids.gather(1, made.places_BP)[made.valid_BP], made.targets_BP[made.valid_BP])
        assert made.targets_BP.min() >= 0


@pytest.mark.parametrize("ngram", [1, 3])
def test_eighty_ten_ten(ngram):
    ids = rows(4000)
    made = masked(ids, ngram=ngram)
    places = chosen(ids, made)
    seen, was = made.ids_BL[places], ids[places]
    count = len(was)
    assert count > 20_000
    hidden, kept = (seen == MASK).float().mean().item(), (seen == was).float().mean().item()
    # A random token is the same one once in as many as there are.
    assert within(hidden, 0.8, count) and within(kept, 0.1 + 0.1 / len(RANDOM), count)
    other = seen[(seen != MASK) & (seen != was)]
    assert other.min() >= FIRST and other.unique().numel() == len(RANDOM)
    spread = torch.bincount(other - FIRST, minlength=len(RANDOM)).double()
    expected = len(other) / len(RANDOM)
    statistic = float(((spread - expected) ** 2 / expected).sum())  # chi squared, one degree less than tokens
    assert abs(statistic - (len(RANDOM) - 1)) < 5 * math.sqrt(2 * (len(RANDOM) - 1))


def test_every_ordinary_token_is_as_likely_as_any_other():
    ids = torch.randint(FIRST, VOCABULARY, (1, 40)).repeat(6000, 1)
    share = chosen(ids, masked(ids)).double().mean(0)
    assert all(within(s, 0.15, 6000) for s in share.tolist())


def test_a_mask_belongs_to_key_and_row_and_not_to_the_batch():
    ids, index = rows(50), torch.arange(50)
    whole = masked(ids, key=seed_of("copy", 3))
    part = masked(ids[20:30].flip(0), key=seed_of("copy", 3), index=index[20:30].flip(0))
    assert torch.equal(whole.ids_BL[20:30], part.ids_BL.flip(0))
    other = masked(ids, key=seed_of("copy", 4))
    assert not torch.equal(whole.ids_BL, other.ids_BL)
    shared = (chosen(ids, whole) & chosen(ids, other)).sum().item() / chosen(ids, whole).sum().item()
    assert within(shared, 0.15, 400)


def sequential(ids, begins, key, ngram, share=0.15):
    """One row at a time, as the paper's words: runs in random order, each taken unless it overlaps one."""
    count, length = ids.shape
    slots = max(1, round(share * length))
    drawn = keyed_uniforms(key, torch.arange(count), 2 * length + 2 * slots)[:, 2 * slots :]
    p = [1 / n for n in range(1, ngram + 1)]
    found = []
    for row in range(count):
        words, last = [], False
        for place in range(length):
            ordinary = bool(ids[row, place] >= FIRST)
            if ordinary and last and not begins[row, place]:
                words[-1][1].append(place)
            else:
                words.append((ordinary, [place]))
            last = ordinary
        order = sorted((float(drawn[row, w]), w) for w in range(len(words)) if words[w][0])
        taken, places = set(), []
        for _, w in order:
            u, n, total = float(drawn[row, length + w]), 1, p[0] / sum(p)
            while n < ngram and u >= total:
                n += 1
                total += p[n - 1] / sum(p)
            run = []
            for k in range(w, min(w + n, len(words))):
                if not words[k][0]:
                    break
                run.append(k)
            if taken & set(run):
                continue
            taken |= set(run)
            places += [place for k in run for place in words[k][1]]
        wanted = max(1, round(share * int((ids[row] >= FIRST).sum())))
        found.append(sorted(places[:wanted]))
    return found


@pytest.mark.parametrize(("length", "pieces"), [(64, 0.0), (48, 0.4), (160, 0.3)])
def test_runs_of_words_equal_the_sequential_choice(length, pieces):
    ids = rows(150, length, seed=length)
    begins = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) >= pieces
    made = masked(ids, key=11, ngram=3, begins_BL=begins)
    expected = sequential(ids, begins, 11, 3)
    for row in range(len(ids)):
        assert made.places_BP[row][made.valid_BP[row]].sort().values.tolist() == expected[row], row


def test_lengths_of_runs_fall_as_one_over_n():
    ids = torch.randint(FIRST, VOCABULARY, (3000, 200))
    made = masked(ids, ngram=3, share=0.02)  # four tokens of a row: runs hardly touch
    first = made.places_BP[:, 0]
    after = (made.places_BP[:, 1] == first + 1).double(), (made.places_BP[:, 2] == first + 2).double()
    two, three = after[0].mean().item(), (after[0] * after[1]).mean().item()
    # p(n) = 6/11, 3/11, 2/11; a neighbouring run may join by chance, about once in a hundred.
    assert abs(two - 5 / 11) < 0.04 and abs(three - 2 / 11) < 0.04


def test_all_runs_of_a_row_settle_in_fewer_rounds_than_are_made(monkeypatch):
    ids = rows(200, 160)
    whole = masked(ids, ngram=3).places_BP
    monkeypatch.setattr(token_masking, "ROUNDS", 4)
    assert torch.equal(masked(ids, ngram=3).places_BP, whole)


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"share": 1.5}, {"replaced": 0.7, "kept": 0.4}, {"ngram": 0}])
def test_settings_are_checked(bad):
    with pytest.raises(ConfigError, match="mask_tokens"):
        masked(rows(4), **bad)
