"""Unigram and bigram models: formulas by hand, distributions that sum to one."""

import math

import numpy as np
import pytest

from imprint.core.errors import ConfigError
from imprint.evals.ngrams import DISCOUNT, NGrams


def test_formulas_by_hand():
    grams = NGrams(np.array([0, 1, 0, 1, 0, 2]), 4)
    assert grams.unigram_nats(np.array([0, 3])) == pytest.approx([-math.log(4 / 10), -math.log(1 / 10)])
    # 0 is followed by 1 twice and by 2 once.
    known = (2 - DISCOUNT) / 3 + DISCOUNT * 2 / 3 * 3 / 10
    new = DISCOUNT * 2 / 3 * 4 / 10
    found = grams.bigram_nats(np.array([0, 0]), np.array([1, 0]))
    assert found == pytest.approx([-math.log(known), -math.log(new)])
    # 2 is the last token and 3 was never seen; -1 stands for nothing before.
    assert grams.bigram_nats(np.array([2, 3, -1]), np.array([1, 1, 1])) == pytest.approx(
        grams.unigram_nats(np.array([1] * 3))
    )


def test_both_are_distributions():
    rng = np.random.default_rng(0)
    grams = NGrams(rng.integers(0, 20, 500) ** 2 // 20, 25)
    every = np.arange(25)
    assert np.exp(-grams.unigram_nats(every)).sum() == pytest.approx(1)
    for before in range(-1, 25):
        assert np.exp(-grams.bigram_nats(np.full(25, before), every)).sum() == pytest.approx(1)


def test_pairs_help_where_text_has_order():
    text = np.tile(np.arange(10), 50)
    grams = NGrams(text, 10)
    assert grams.bigram_nats(text[:-1], text[1:]).mean() < 0.1 < grams.unigram_nats(text[1:]).mean()


def test_foreign_tokens_are_refused():
    with pytest.raises(ConfigError, match="vocabulary of 3"):
        NGrams(np.array([0, 3]), 3)
