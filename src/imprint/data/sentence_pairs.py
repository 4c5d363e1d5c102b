"""Pairs of segments for BERT's next-sentence and ALBERT's sentence-order prediction.

Devlin, Chang, Lee, Toutanova 2019, arXiv 1810.04805, App. A.2 (google-research/bert, create_pretraining_data.py); Lan
et al. 2020, arXiv 1909.11942, Sec. 3.1. Sentences of a document are gathered until a row is full and parted between two
of them, drawn at random, into a and b. For `next`, half of the b are text from a random place of another document
instead, and the sentences that this pushes out are gathered anew; a row of one sentence has no b of its own, so a
little more than half are of another document. For `order`, a and b change places half the time.

One deviation: a row of `order` always holds two segments that follow each other. Where a single sentence fills a row
the next one is gathered too, and a sentence left alone at the end of its document is parted inside; the public code
takes text of another document there and calls that a swapped pair, which lets the topic tell (Sec. 3.1 is against it).

Shapes: R rows of a copy, B rows of a batch, L tokens of a row, T tokens, N documents, S sentences.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import DataError
from imprint.core.rng import key
from imprint.data.compiled import kernel
from imprint.data.corpus import Corpus
from imprint.data.headers import Layout
from imprint.data.sources import Sample, Source, digest
from imprint.data.texts import Texts
from imprint.data.token_stream import token_stream

Index = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1, _MUL2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
_KEPT = 2  # copies in memory: that of this epoch, and the next or the last one


class SentencePairs(Source):
    """Rows [CLS] a [SEP] b [SEP] with segments and labels.

    Every epoch takes the next of `texts.copies` ways to cut the documents. They differ a little in their number of
    rows: the longest counts, and a shorter one shows some of its rows twice.

    Args:
        corpus: the documents.
        tokenizer: makes tokens of all of them, here.
        texts: how to cut them; `packing` is `next` or `order`.
        seed: of what is drawn for all epochs.

    Attributes:
        stream_T: all tokens of the corpus in order, without special ones.

    Raises:
        DataError: for `next` with a single document, or when no pair can be made.
    """

    pixels = False

    def __init__(self, corpus: Corpus, tokenizer: TextTokenizer, texts: Texts, *, seed: int) -> None:
        self.corpus, self.tokenizer, self.texts, self.seed = corpus, tokenizer, texts, seed
        self.spec = corpus.spec
        self.stream = token_stream(corpus, tokenizer, sentences=True)
        self.stream_T = self.stream.ids_T
        documents = len(self.stream.documents) - 1
        if texts.packing == "next" and documents < 2:
            raise DataError(
                f"'{corpus.spec}' is one document, and whether b follows a is asked with text of another one. Say "
                "what ends a document (--data.text.document blank, heading or line), or give more files."
            )
        self._lock = threading.Lock()
        self._copies: dict[int, tuple[Index, npt.NDArray[np.bool_]]] = {}
        sizes = [len(self._cut(copy)[1]) for copy in range(texts.copies)]
        self._size = max(sizes)
        if min(sizes) == 0:
            raise DataError(f"'{corpus.spec}' has {len(self.stream_T)} tokens, too few for a pair of segments.")

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._size

    def pairs(self, copy: int) -> tuple[Index, npt.NDArray[np.bool_]]:
        """Return (R, 4) where a and b begin and end in `stream_T`, and (R,) whether b is not what follows a."""
        with self._lock:
            found = self._copies.pop(copy, None)
        found = found or self._cut(copy)
        with self._lock:
            self._copies[copy] = found  # the latest stands last
            while len(self._copies) > _KEPT:
                self._copies.pop(next(iter(self._copies)))
        return found

    def _cut(self, copy: int) -> tuple[Index, npt.NDArray[np.bool_]]:
        stream, texts = self.stream, self.texts
        spans = np.zeros((len(stream.units) - 1, 4), dtype=np.int64)
        labels = np.zeros(len(spans), dtype=np.bool_)
        rows = _pair_up(
            stream.units, stream.documents, texts.length - 3, texts.short, texts.packing == "order",
            np.uint64(key(self.seed, "sentence pairs", copy)), spans, labels,
        )  # fmt: skip
        return spans[:rows].copy(), labels[:rows].copy()

    def _picked(self, epoch: int, index_B: Index) -> tuple[Index, npt.NDArray[np.bool_]]:
        spans, labels = self.pairs(epoch % self.texts.copies)
        rows = np.asarray(index_B, dtype=np.int64) * len(labels) // self._size  # reaches every row
        return spans[rows], labels[rows]

    def read(self, i: int) -> Sample:
        """Return the two segments of row `i` in the first epoch as bytes, a line each."""
        (span,), _ = self._picked(0, np.array([i]))
        parts = (self.stream_T[span[0] : span[1]], self.stream_T[span[2] : span[3]])
        return "\n".join(self.tokenizer.decode(part).strip() for part in parts).encode()

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

    def tokens(self, seed: int, epoch: int, index_B: Index) -> dict[str, Index]:
        """Return rows (B, L), -1 where there is no token; segments (B, L), 0 there; labels (B,)."""
        span_B4, label_B = self._picked(epoch, index_B)
        first_a, first_b = span_B4[:, :1], span_B4[:, 2:3]
        size_a, size_b = span_B4[:, 1:2] - first_a, span_B4[:, 3:] - first_b
        place = np.arange(self.texts.length)[None, :]
        in_a = (place >= 1) & (place <= size_a)
        in_b = (place >= size_a + 2) & (place < size_a + 2 + size_b)
        words = in_a | in_b
        source = np.where(in_a, first_a + place - 1, first_b + place - size_a - 2)
        rows = np.full(source.shape, -1, dtype=np.int64)
        rows[words] = self.stream_T[source[words]]
        rows[:, 0] = self.tokenizer.special.start
        ends = (place == size_a + 1) | (place == size_a + size_b + 2)
        rows[ends] = self.tokenizer.special.end
        segments = ((place >= size_a + 2) & (place <= size_a + size_b + 2)).astype(np.int64)
        name = self.texts.name
        return {name: rows, f"{name}:segment": segments, f"{name}:label": label_B.astype(np.int64)}


@kernel
def _drawn(state: Any) -> Any:
    """Return a uniform number in [0, 1), and move the state: SplitMix64."""
    state[0] += _GOLDEN
    x = state[0]
    x = (x ^ (x >> _S30)) * _MUL1
    x = (x ^ (x >> _S27)) * _MUL2
    return np.float64((x ^ (x >> _S31)) >> _S11) * (1.0 / 9007199254740992.0)


@kernel
def _pair_up(
    units: Any, documents: Any, room: Any, short: Any, order: Any, random_key: Any, spans: Any, labels: Any
) -> Any:
    """Fill `spans` (a begins, a ends, b begins, b ends) and `labels`; return how many rows there are."""
    state = np.zeros(1, dtype=np.uint64)
    rows, count = 0, len(documents) - 1
    for document in range(count):
        state[0] = random_key + np.uint64(document) * _MUL1
        _drawn(state)
        first, last = documents[document], documents[document + 1]
        target = room
        if _drawn(state) < short:
            target = 2 + int(_drawn(state) * (room - 1))
        begin, i = first, first
        while i < last:
            many = i + 1 - begin
            enough = units[i + 1] - units[begin] >= target and (many >= 2 or not order)
            if not enough and i < last - 1:
                i += 1
                continue
            wrong = False
            a0, a1, b0, b1 = units[begin], units[i + 1], units[begin], units[i + 1]
            if many >= 2:
                middle = begin + 1 + int(_drawn(state) * (many - 1))
                a1 = b0 = units[middle]
            elif order:  # a sentence alone: parted inside, if it has two tokens
                if a1 - a0 < 2:
                    i += 1
                    begin = i
                    continue
                a1 = b0 = a0 + 1 + int(_drawn(state) * (a1 - a0 - 1))
            if order:
                wrong = _drawn(state) < 0.5
                if wrong:
                    a0, a1, b0, b1 = b0, b1, a0, a1
            elif many == 1 or _drawn(state) < 0.5:
                wrong = True
                other = int(_drawn(state) * (count - 1))
                if other >= document:
                    other += 1
                start = documents[other] + int(_drawn(state) * (documents[other + 1] - documents[other]))
                stop = start + 1
                while stop < documents[other + 1] and units[stop] - units[start] < target - (a1 - a0):
                    stop += 1
                b0, b1 = units[start], units[stop]
                if many >= 2:
                    i = middle - 1  # what a did not take is put back
            while a1 - a0 + b1 - b0 > room:  # the longer one loses a token at a random end
                front = _drawn(state) < 0.5
                if a1 - a0 > b1 - b0:
                    a0, a1 = (a0 + 1, a1) if front else (a0, a1 - 1)
                else:
                    b0, b1 = (b0 + 1, b1) if front else (b0, b1 - 1)
            spans[rows, 0], spans[rows, 1], spans[rows, 2], spans[rows, 3] = a0, a1, b0, b1
            labels[rows] = wrong
            rows += 1
            i += 1
            begin = i
    return rows
