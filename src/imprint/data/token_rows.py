"""Documents cut into rows of tokens, as a method declared them (`Texts.packing`).

Shapes: B rows, L tokens of a row, T tokens of the whole corpus, N documents.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError, DataError
from imprint.data.corpus import Corpus
from imprint.data.headers import Layout
from imprint.data.sentence_pairs import SentencePairs
from imprint.data.sources import Sample, Source, digest
from imprint.data.texts import Texts
from imprint.data.token_stream import token_stream


class TokenRows(Source):
    """Rows of tokens of a corpus, `packed` or `documents`; every token stands in exactly one row.

    Args:
        corpus: the documents.
        tokenizer: makes tokens of all of them, here.
        texts: how to cut them.
        seed: of what is drawn for all epochs; nothing is.

    Attributes:
        stream_T: all tokens of the corpus in order, an end token after each document.

    Raises:
        ConfigError: for a packing of another kind.
    """

    pixels = False

    def __init__(self, corpus: Corpus, tokenizer: TextTokenizer, texts: Texts, *, seed: int = 0) -> None:
        if texts.packing not in ("packed", "documents"):
            raise ConfigError(f"rows of packing '{texts.packing}' are made by open_rows or TokenizedPairs.")
        self.corpus, self.tokenizer, self.texts, self.seed = corpus, tokenizer, texts, seed
        self.spec = corpus.spec
        self.stream = token_stream(corpus, tokenizer, sentences=False)
        self.stream_T = self.stream.ids_T
        self._room = texts.length - int(texts.start)
        starts = self.stream.document_starts if texts.packing == "documents" else np.array([0, len(self.stream_T)])
        # Rows of each document (or of all at once): its size over the room, rounded up.
        sizes = np.diff(starts)
        rows_N = -(-sizes // self._room)
        within = np.arange(int(rows_N.sum())) - np.repeat(np.cumsum(rows_N) - rows_N, rows_N)
        self._starts = np.repeat(starts[:-1], rows_N) + within * self._room
        self._sizes = np.minimum(self._room, np.repeat(starts[1:], rows_N) - self._starts)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._starts)

    def read(self, i: int) -> Sample:
        """Return the text of row `i` as bytes."""
        start, size = int(self._starts[i]), int(self._sizes[i])
        return self.tokenizer.decode(self.stream_T[start : start + size]).encode()

    def name(self, i: int) -> str:
        """Return the number of the row."""
        return f"{self.spec}@{i}"

    @cached_property
    def layout(self) -> Layout:
        """That of the corpus."""
        return self.corpus.layout

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the corpus, the tokenizer and how it is cut."""
        return digest(self.corpus.fingerprint, self.tokenizer.fingerprint, repr(self.texts))

    def tokens(self, seed: int, epoch: int, index_B: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        """Return the rows (B, L), -1 where there is no token."""
        first, size = self._starts[index_B], self._sizes[index_B]
        place = np.arange(self._room)[None, :]
        inside = place < size[:, None]
        rows = np.full((len(index_B), self.texts.length), -1, dtype=np.int64)
        at = int(self.texts.start)
        if at:
            rows[:, 0] = self.tokenizer.special.start
        rows[:, at:][inside] = self.stream_T[(first[:, None] + place)[inside]]
        return {self.texts.name: rows}


TextRows = TokenRows | SentencePairs


def open_rows(corpus: Corpus, tokenizer: TextTokenizer, texts: Texts, *, seed: int) -> TextRows:
    """Return a corpus as rows of tokens, as `texts.packing` says.

    Raises:
        DataError: when the corpus cannot be cut so.
        ConfigError: for `captions`, which belong to images.
    """
    made: TextRows
    if texts.packing in ("next", "order"):
        made = SentencePairs(corpus, tokenizer, texts, seed=seed)
    else:
        made = TokenRows(corpus, tokenizer, texts, seed=seed)
    if not len(made):
        raise DataError(f"'{corpus.spec}' has no row of tokens.")
    return made
