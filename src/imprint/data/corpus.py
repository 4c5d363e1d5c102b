"""Documents from text files, JSON lines, tables or shards, as one source of text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.core.errors import DataError
from imprint.core.rng import key
from imprint.data.compact import Names
from imprint.data.headers import Layout
from imprint.data.sources import Sample, Source, digest
from imprint.data.texts import TextConfig

Index = npt.NDArray[np.int64]

_HEADING = re.compile(r"^ = [^=].*[^=] = $")


class Corpus(Source):
    """N documents, held as one blob of UTF-8.

    Args:
        packed: the documents; empty ones must be gone.
        spec: the words it was opened with.
    """

    pixels = False

    def __init__(self, packed: Names, spec: str) -> None:
        self.packed, self.spec = packed, spec

    @classmethod
    def of(cls, texts: Iterable[str], spec: str = "texts") -> Corpus:
        """Make a corpus of documents in memory; empty ones are left out.

        Raises:
            DataError: when none holds a word.
        """
        packed = Names.of(text.strip("\n").encode() for text in texts if text.strip())
        if not len(packed):
            raise DataError(f"'{spec}' holds no text.")
        return cls(packed, spec)

    def __len__(self) -> int:
        """Return N."""
        return len(self.packed)

    def document(self, i: int) -> str:
        """Return document `i`."""
        return bytes(self.packed[int(i)]).decode()

    def documents(self) -> Iterator[str]:
        """Yield all documents."""
        return (self.document(i) for i in range(len(self)))

    def read(self, i: int) -> Sample:
        """Return document `i` as bytes."""
        return bytes(self.packed[int(i)])

    def name(self, i: int) -> str:
        """Return the number of the document."""
        return f"{self.spec}#{i}"

    @cached_property
    def layout(self) -> Layout:
        """There are no images; encoders of text look at no channels."""
        return Layout(3, np.dtype(np.uint8))

    @cached_property
    def fingerprint(self) -> str:
        """Digest over all text."""
        return digest(self.packed.blob, self.packed.offsets)

    def subset(self, indices: npt.ArrayLike) -> Corpus:
        """Return some documents, in the order given."""
        rows = np.asarray(indices, dtype=np.int64)
        packed = Names.of(bytes(self.packed[int(i)]) for i in rows)
        return Corpus(packed, f"{self.spec}[{len(rows)} of {len(self)}]")

    def split(self, share: float, seed: int = 0) -> tuple[Corpus, Corpus]:
        """Return (the rest, `share` of the documents); the draw is keyed by the seed."""
        held = round(share * len(self))
        order = np.argsort(key(seed, "split", np.arange(len(self))), kind="stable")
        return self.subset(np.sort(order[held:])), self.subset(np.sort(order[:held]))


def open_corpus(
    spec: str | os.PathLike[str] | Corpus | Sequence[str | os.PathLike[str]],
    *,
    column: str | None = None,
    document: str = TextConfig().document,
) -> Corpus:
    """Open documents: `.txt` files (see `TextConfig.document`), `.jsonl` with a field of text, or a folder of them.

    Raises:
        DataError: for files that are not there, are not UTF-8, or hold no text.
    """
    if isinstance(spec, Corpus):
        return spec
    words = [spec] if isinstance(spec, (str, os.PathLike)) else list(spec)
    files = [file for word in words for file in _files(Path(word).expanduser())]
    shown = ", ".join(os.fspath(word) for word in words)
    return Corpus.of((text for file in files for text in _read(file, column, document)), shown)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in (".txt", ".jsonl"))
    if not path.is_file():
        raise DataError(f"'{path}' does not exist. Give a .txt or .jsonl file, or a folder of them.")
    return [path]


def _read(file: Path, column: str | None, document: str) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' cannot be read as UTF-8 text: {error}.") from error
    if file.suffix.lower() == ".jsonl":
        yield from (str(json.loads(line)[column or "text"]) for line in text.splitlines() if line.strip())
    elif document == "file":
        yield text
    elif document == "line":
        yield from text.splitlines()
    elif document == "blank":
        yield from re.split(r"\n\s*\n", text)
    else:
        lines: list[str] = []
        for line in text.splitlines():
            if _HEADING.match(line) and lines:
                yield "\n".join(lines)
                lines = []
            lines.append(line)
        yield "\n".join(lines)
