"""All tokens of a corpus as one array, kept on disk where making it takes long.

Shapes: T tokens, N documents, S sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.data.compact import cache_path, read_cache, write_cache
from imprint.data.corpus import Corpus
from imprint.data.sentences import sentences_of

KEPT_FROM = 4 << 20
"""Bytes of text from which the tokens are kept in the user's cache."""
_AT_ONCE = 2 << 20  # characters that are handed to the tokenizer together
_LONGEST = 1 << 20  # characters of one piece: a tokenizer holds some hundred bytes for each


@dataclass(frozen=True)
class TokenStream:
    """The tokens of a corpus in order.

    Attributes:
        ids_T: uint16 where the vocabulary fits, else int32; in memory, or mapped from disk.
        units: int64 (S + 1,), where each sentence begins, with the end of all; each document where it was not cut into
            sentences.
        documents: int64 (N + 1,), the first unit of each document, with the end of all.
    """

    ids_T: npt.NDArray[Any]
    units: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]

    @property
    def document_starts(self) -> npt.NDArray[np.int64]:
        """Where each document begins in `ids_T`, with the end of all, int64 (N + 1,)."""
        return np.asarray(self.units[self.documents])


def token_stream(corpus: Corpus, tokenizer: TextTokenizer, *, sentences: bool) -> TokenStream:
    """Return the tokens of a corpus, from the cache if they were made before.

    Args:
        corpus: the documents.
        tokenizer: makes their tokens.
        sentences: cut the documents into sentences, each in tokens of its own, without end tokens; otherwise an end
            token closes each document.
    """
    kept = cache_path("tokens", corpus.fingerprint, tokenizer.fingerprint, "sentences" if sentences else "whole")
    large = corpus.packed.blob.nbytes >= KEPT_FROM
    stored = read_cache(kept) if large else None
    if stored is None or set(stored) != {"ids", "units", "documents"}:
        made = _made(corpus, tokenizer, sentences)
        if not large or not write_cache(kept, made):
            return TokenStream(made["ids"], made["units"], made["documents"])
        stored = read_cache(kept) or made  # mapped, so that processes of one machine share it
    return TokenStream(stored["ids"], stored["units"], stored["documents"])


def _made(corpus: Corpus, tokenizer: TextTokenizer, sentences: bool) -> dict[str, npt.NDArray[Any]]:
    small = np.uint16 if tokenizer.vocabulary <= 1 << 16 else np.int32
    ids: list[npt.NDArray[Any]] = []
    sizes: list[npt.NDArray[np.int64]] = []  # of pieces
    kinds: list[npt.NDArray[np.int8]] = []  # what begins with a piece: 0 nothing, 1 a unit, 2 a document too
    for texts, begins in _blocks(corpus, sentences):
        found = tokenizer.ids(texts)
        if not sentences:  # an end token closes what comes before a document, so the first of all gets none
            end = np.array([tokenizer.special.end], dtype=np.int32)
            found = [
                np.concatenate([end, some]) if kind == 2 else some for some, kind in zip(found, begins, strict=True)
            ]
        ids.append(np.concatenate(found).astype(small))
        sizes.append(np.array([len(some) for some in found], dtype=np.int64))
        kinds.append(np.array(begins, dtype=np.int8))
    size_P, kind_P = np.concatenate(sizes), np.concatenate(kinds)
    ids_T = np.concatenate(ids)
    ends = np.cumsum(size_P)
    if not sentences:  # the end tokens stand before the documents: move them behind
        ids_T = np.append(ids_T[1:], np.array([tokenizer.special.end], dtype=small))
        units = np.append((ends - size_P)[kind_P == 2], len(ids_T))
        return {"ids": ids_T, "units": units, "documents": np.arange(len(units))}
    # A unit is a piece that begins one with all pieces that go on with it; units without a token are none.
    number_P = np.cumsum(kind_P > 0) - 1
    size_S = np.bincount(number_P, weights=size_P).astype(np.int64)
    document_S = (np.cumsum(kind_P == 2) - 1)[kind_P > 0]
    document_S, size_S = document_S[size_S > 0], size_S[size_S > 0]
    units = np.concatenate([[0], np.cumsum(size_S)]).astype(np.int64)
    firsts = np.flatnonzero(np.diff(document_S, prepend=-1)) if len(document_S) else np.zeros(0, np.int64)
    return {"ids": ids_T, "units": units, "documents": np.append(firsts, len(size_S)).astype(np.int64)}


def _blocks(corpus: Corpus, sentences: bool) -> Iterator[tuple[list[str], list[int]]]:
    """Yield (pieces of text, what begins with each) in blocks that fit into memory."""
    texts: list[str] = []
    begins: list[int] = []
    waiting = 0
    for document in corpus.documents():
        new = 2
        for unit in sentences_of(document) if sentences else (document,):
            for place, piece in enumerate(pieces_of(unit)):
                texts.append(piece)
                begins.append(new if place == 0 else 0)
                waiting += len(piece)
                if waiting >= _AT_ONCE:
                    yield texts, begins
                    texts, begins, waiting = [], [], 0
            new = 1
    if texts:
        yield texts, begins


def pieces_of(text: str, longest: int = _LONGEST) -> Iterator[str]:
    """Yield a long text in pieces that make the same tokens as the whole: each but the first begins with a space.

    Where no single space stands between two words for as long again, it is cut at the next best place.
    """
    start = 0
    while len(text) - start > longest:
        at = start + longest
        limit = min(len(text) - 1, at + longest)
        while (at := text.find(" ", at, limit)) > 0 and (text[at - 1].isspace() or text[at + 1].isspace()):
            at += 1
        if at < 0 and limit == len(text) - 1:  # a short rest
            break
        cut = at if at > 0 else start + longest
        yield text[start:cut]
        start = cut
    yield text[start:]
