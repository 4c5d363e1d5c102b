"""Documents cut into rows of tokens, as a method declared them (`Texts.packing`).

Shapes: B rows, L tokens of a row, T tokens of the whole corpus.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import DataError
from imprint.data.corpus import Corpus
from imprint.data.headers import Layout
from imprint.data.sources import Sample, Source, digest
from imprint.data.texts import Texts

_AT_ONCE = 1_000


class TokenRows(Source):
    """Rows of tokens of a corpus.

    Args:
        corpus: the documents.
        tokenizer: makes tokens of all of them, here.
        texts: how to cut them.
        seed: of what is drawn for all epochs.

    Attributes:
        stream_T: int32, all tokens of the corpus in order, an end token after each document.

    Raises:
        DataError: when there is less than one row.
    """

    pixels = False

    def __init__(self, corpus: Corpus, tokenizer: TextTokenizer, texts: Texts, *, seed: int) -> None:
        self.corpus, self.tokenizer, self.texts, self.seed = corpus, tokenizer, texts, seed
        self.spec = corpus.spec
        end = np.array([tokenizer.special.end], dtype=np.int32)
        parts: list[npt.NDArray[np.int32]] = []
        for start in range(0, len(corpus), _AT_ONCE):
            several = [corpus.document(i) for i in range(start, min(start + _AT_ONCE, len(corpus)))]
            for ids in tokenizer.ids(several):
                parts += [ids, end]
        self.stream_T = np.concatenate(parts)
        sizes = np.array([len(ids) + 1 for ids in parts[::2]], dtype=np.int64)
        self.document_starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._room = texts.length - int(texts.start)
        self._starts, self._sizes = self._cut()
        if not len(self._starts):
            raise DataError(f"'{corpus.spec}' has {len(self.stream_T)} tokens, less than one row of {texts.length}.")

    def _cut(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return where each row starts in the stream and how many tokens it takes from there."""
        if self.texts.packing == "packed":
            starts = np.arange(0, len(self.stream_T), self._room)
            return starts, np.minimum(self._room, len(self.stream_T) - starts)
        rows = [
            np.arange(a, b, self._room)
            for a, b in zip(self.document_starts[:-1], self.document_starts[1:], strict=True)
        ]
        starts = np.concatenate(rows)
        ends = np.repeat(self.document_starts[1:], [len(r) for r in rows])
        return starts, np.minimum(self._room, ends - starts)

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
        return digest(self.corpus.fingerprint, self.tokenizer.fingerprint, repr(self.texts), str(self.seed))

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
