"""Unigram and bigram models of a text: what a network that predicts tokens has to beat.

Shapes: T tokens of the training text, Q tokens that are asked about, K tokens of the vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError

DISCOUNT = 0.75
"""Of every count of a pair (Ney, Essen, Kneser 1994, report 0.7 to 0.8 for text)."""

Ids = npt.NDArray[np.integer]
Nats = npt.NDArray[np.float64]


class NGrams:
    r"""Counts of tokens and of pairs of neighbours.

    Unigram: p(w) = (c(w) + 1) / (T + K). Bigram, by interpolated absolute discounting: p(w | v) =
    max(c(v, w) - d, 0) / c(v) + d n(v) / c(v) p(w), n(v) the number of different followers of v and c(v) of all;
    p(w) where v was never followed.

    Args:
        stream_T: the training text in tokens, all non-negative.
        vocabulary: K.

    Raises:
        ConfigError: for a text with a token outside of the vocabulary, or none.
    """

    def __init__(self, stream_T: Ids, vocabulary: int) -> None:
        stream = np.asarray(stream_T, dtype=np.int64)
        if not len(stream) or stream.min() < 0 or stream.max() >= vocabulary:
            raise ConfigError(f"a text of {len(stream)} tokens does not fit a vocabulary of {vocabulary}.")
        self.vocabulary = vocabulary
        self.unigram_K = (np.bincount(stream, minlength=vocabulary) + 1.0) / (len(stream) + vocabulary)
        self._pairs, counts = np.unique(stream[:-1] * vocabulary + stream[1:], return_counts=True)
        self._counts = counts.astype(np.float64)
        first = self._pairs // vocabulary
        self._total_K = np.bincount(first, weights=self._counts, minlength=vocabulary)
        self._followers_K = np.bincount(first, minlength=vocabulary).astype(np.float64)

    def unigram_nats(self, tokens_Q: Ids) -> Nats:
        """Return -log p(w)."""
        return np.asarray(-np.log(self.unigram_K[np.asarray(tokens_Q, dtype=np.int64)]))

    def bigram_nats(self, before_Q: Ids, tokens_Q: Ids) -> Nats:
        """Return -log p(w | v) of tokens w with the token v before each; -1 for v where none is."""
        before, tokens = np.asarray(before_Q, dtype=np.int64), np.asarray(tokens_Q, dtype=np.int64)
        base, known = self.unigram_K[tokens], np.maximum(before, 0)
        total = np.where(before >= 0, self._total_K[known], 0.0)
        if not len(self._pairs):
            return np.asarray(-np.log(base))
        asked = known * self.vocabulary + tokens
        place = np.minimum(np.searchsorted(self._pairs, asked), len(self._pairs) - 1)
        count = np.where(self._pairs[place] == asked, self._counts[place], 0.0)
        safe = np.maximum(total, 1.0)
        mixed = np.maximum(count - DISCOUNT, 0.0) / safe + DISCOUNT * self._followers_K[known] / safe * base
        return np.asarray(-np.log(np.where(total > 0, mixed, base)))
