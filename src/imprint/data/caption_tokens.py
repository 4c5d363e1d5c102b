"""Images with captions in tokens: each time another one of an image's captions, a function of seed, epoch and image.

Shapes: B images, M captions, L tokens of the longest caption of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.data.headers import Layout
from imprint.data.pairs import PairSource
from imprint.data.sources import Sample, Source, digest
from imprint.data.texts import Texts

log = logging.getLogger(__name__)

_AT_ONCE = 10_000
_MUCH = 0.05


class TokenizedPairs(Source):
    """A PairSource whose captions are tokens; as a source of images it is the images.

    Args:
        pairs: images and captions.
        tokenizer: makes tokens of all captions at once, here.
        texts: the name and the length of the rows.

    Attributes:
        cut: captions that were longer than `texts.length` and lost their end; more than one in twenty give a warning.
    """

    def __init__(self, pairs: PairSource, tokenizer: TextTokenizer, texts: Texts) -> None:
        self.pairs, self.spec, self.texts, self.tokenizer = pairs, pairs.spec, texts, tokenizer
        room = texts.length - 2
        parts: list[npt.NDArray[np.int32]] = []
        sizes: list[npt.NDArray[np.int64]] = []
        self.cut = 0
        for some in _blocks(pairs):
            found = tokenizer.ids(some)
            self.cut += sum(len(ids) > room for ids in found)
            parts.append(np.concatenate([ids[:room] for ids in found]))
            sizes.append(np.array([min(room, len(ids)) for ids in found], dtype=np.int64))
        self._ids = np.concatenate([np.zeros(0, dtype=np.int32), *parts])
        self._starts = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *sizes]))])
        if self.cut > _MUCH * len(pairs.captions):
            log.warning(
                "%d of %d captions of '%s' are longer than %d tokens and lose their end",
                self.cut, len(pairs.captions), pairs.spec, texts.length,
            )  # fmt: skip

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pairs)

    def read(self, i: int) -> Sample:
        """Return image `i`."""
        return self.pairs.read(i)

    def name(self, i: int) -> str:
        """Return the name of image `i`."""
        return self.pairs.name(i)

    @cached_property
    def layout(self) -> Layout:
        """That of the images."""
        return self.pairs.layout

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the pairs, the tokenizer and the length."""
        return digest(self.pairs.fingerprint, self.tokenizer.fingerprint, str(self.texts.length))

    def tokens(self, seed: int, epoch: int, index_B: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
        """Return one caption of each image as start, ids, end, then -1, (B, L)."""
        return {self.texts.name: self.rows(self.pairs.drawn(seed, epoch, index_B))}

    def rows(self, captions_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return captions by their number in `pairs.captions` as rows (B, L)."""
        first, size = self._starts[captions_B], np.diff(self._starts)[captions_B]
        width = int(size.max(initial=0))
        place = np.arange(width)[None, :]
        inside = place < size[:, None]
        rows = np.full((len(captions_B), width + 2), -1, dtype=np.int64)
        rows[:, 0] = self.tokenizer.special.start
        rows[:, 1:-1][inside] = self._ids[(first[:, None] + place)[inside]]
        rows[np.arange(len(captions_B)), size + 1] = self.tokenizer.special.end
        return rows


def _blocks(pairs: PairSource) -> Iterator[list[str]]:
    for start in range(0, len(pairs.captions), _AT_ONCE):
        yield list(pairs.captions[start : start + _AT_ONCE])
