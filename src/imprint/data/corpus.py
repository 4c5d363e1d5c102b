"""Documents from text files, JSON lines, tables or shards, as one source of text."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import key
from imprint.data.compact import Names
from imprint.data.headers import Layout
from imprint.data.huggingface import huggingface_texts
from imprint.data.index import is_image
from imprint.data.patterns import expanded
from imprint.data.sources import Sample, Source, digest
from imprint.data.text_files import LINES, PLAIN, SHARDS, TABLES, Faults, Reader, suffix_of
from imprint.data.texts import TextConfig

log = logging.getLogger(__name__)

Index = npt.NDArray[np.int64]

_KINDS = (*PLAIN, *LINES, *TABLES, ".parquet", *SHARDS)
_AT_ONCE = 1 << 16  # documents that are packed together


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
        packed = _packed(_encoded(texts))
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
        packed = _packed(bytes(self.packed[int(i)]) for i in rows)
        return Corpus(packed, f"{self.spec}[{len(rows)} of {len(self)}]")

    def split(self, share: float, seed: int = 0) -> tuple[Corpus, Corpus]:
        """Return (the rest, `share` of the documents); the draw is keyed by the seed."""
        held = round(share * len(self))
        order = np.argsort(key(seed, "split", np.arange(len(self))), kind="stable")
        return self.subset(np.sort(order[held:])), self.subset(np.sort(order[:held]))


def _encoded(texts: Iterable[str]) -> Iterator[bytes]:
    """Yield documents as UTF-8; empty ones are left out, and halves of surrogate pairs become question marks."""
    return (text.strip("\n").encode("utf-8", "replace") for text in texts if text.strip())


def _packed(texts: Iterator[bytes]) -> Names:
    """Pack texts some at a time, so that many short ones are never all Python objects."""
    parts: list[tuple[bytes, npt.NDArray[np.uint32]]] = []
    while some := list(islice(texts, _AT_ONCE)):
        parts.append((b"".join(some), np.fromiter(map(len, some), np.uint32, len(some))))
    return Names.packed(parts)


def open_corpus(
    spec: str | os.PathLike[str] | Corpus | Sequence[str | os.PathLike[str]],
    *,
    column: str | None = None,
    document: str = TextConfig().document,
    bad_limit: float = 0.05,
) -> Corpus:
    """Open documents.

    `.txt` (see `TextConfig.document`), `.jsonl` and `.json`, `.csv` and `.tsv`, each also `.gz`, `.bz2` or `.xz`;
    `.parquet`; `.tar`, `.tar.gz` and `.zip` with such files inside; a pattern of files (`docs-{00..09}.jsonl.gz`,
    `*.txt`); a folder, whose files of these kinds are taken in the order of their names; `hf:NAME[:SPLIT]` or a folder
    of the datasets library; several of these.

    Args:
        spec: see above; a Corpus passes through.
        column: field or column with the text; None finds it.
        document: what one document of plain text is.
        bad_limit: share of lines that may be broken; they are left out and named in a warning.

    Raises:
        DataError: for files that are not there, cannot be read, hold no text, or too many broken lines.
        ConfigError: for files of another kind, or a column that is not there.
    """
    if isinstance(spec, Corpus):
        return spec
    words = [os.fspath(word) for word in ([spec] if isinstance(spec, (str, os.PathLike)) else spec)]
    shown = ", ".join(words)
    faults = Faults()
    reader = Reader(column, document, faults)
    packed = _packed(_encoded(text for word in words for text in _texts(word, reader)))
    if faults.bad > bad_limit * faults.seen:
        raise DataError(
            f"{faults.bad:,} of {faults.seen:,} lines of '{shown}' cannot be used, more than the share of "
            f"{bad_limit:g} that data.bad_limit allows. {faults.told}."
        )
    if not len(packed):
        raise DataError(f"'{shown}' holds no text.")
    if faults.bad:
        log.warning("%d of %d lines of '%s' are left out: %s", faults.bad, faults.seen, shown, faults.told)
    return Corpus(packed, shown)


def _texts(word: str, reader: Reader) -> Iterator[str]:
    path = Path(word).expanduser()
    if word.startswith("hf:") or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return huggingface_texts(word.removeprefix("hf:"), reader.column)
    return (text for file in _files(word) for text in reader.documents(file))


def _files(word: str) -> list[Path]:
    """Return the files that a word names."""
    path = Path(word).expanduser()
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        found = [p for p in inside if _readable(p)]
        if not found:
            images = next((p.name for p in inside if is_image(os.fsencode(p.name))), None)
            raise DataError(
                f"the folder '{word}' holds no files of text ({', '.join(_KINDS)})"
                + (f", but images such as '{images}'; this method learns from text." if images else ".")
            )
        return found
    found = expanded(word)
    strange = next((p for p in found if not _readable(p)), None)
    if strange is not None:
        raise ConfigError(
            f"'{strange}' is no file of text by its name. Give {', '.join(_KINDS)}, also as .gz, or a folder of them."
        )
    return found


def _readable(path: Path) -> bool:
    return suffix_of(path.name) in _KINDS
