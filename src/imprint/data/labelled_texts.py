"""Texts, or pairs of them, with a class each: .jsonl, .csv and .tsv files for text classification.

Shapes: N samples.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError, DataError, nearest
from imprint.data.compact import Names
from imprint.data.headers import Layout
from imprint.data.sources import Sample, Source, digest

TEXT_FIELDS = ("text", "sentence", "review", "content", "document", "question")
PAIR_FIELDS = (
    ("text_a", "text_b"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "sentence"),
)  # fmt: skip
LABEL_FIELDS = ("label", "class", "category", "target", "gold_label")


class LabelledTexts(Source):
    """N texts with a class each, in the order of the file.

    Attributes:
        second: the second texts of pairs, or None.
    """

    pixels = False

    def __init__(
        self, first: Names, second: Names | None, labels: npt.NDArray[np.int64], classes: tuple[str, ...], spec: str
    ) -> None:
        self.first, self.second, self.labels, self.classes, self.spec = first, second, labels, classes, spec

    @classmethod
    def of(
        cls, texts: Sequence[str], labels: Sequence[str | int], second: Sequence[str] | None = None, spec: str = "texts"
    ) -> LabelledTexts:
        """Make a source of texts in memory; classes are counted in the order of their names.

        Raises:
            DataError: for no text, or lists of different lengths.
        """
        if not texts or len(texts) != len(labels) or (second is not None and len(second) != len(texts)):
            raise DataError(f"'{spec}': {len(texts)} texts do not go with {len(labels)} labels.")
        words = [str(label) for label in labels]
        classes = tuple(
            sorted(set(words), key=lambda word: (not word.isdigit(), int(word) if word.isdigit() else 0, word))
        )
        place = {name: k for k, name in enumerate(classes)}
        numbers = np.array([place[word] for word in words], dtype=np.int64)
        packed = Names.of(text.encode() for text in texts)
        return cls(packed, None if second is None else Names.of(t.encode() for t in second), numbers, classes, spec)

    def __len__(self) -> int:
        """Return N."""
        return len(self.first)

    def texts(self, i: int) -> tuple[str, ...]:
        """Return the text, or the two texts, of sample `i`."""
        both = (self.first,) if self.second is None else (self.first, self.second)
        return tuple(bytes(part[int(i)]).decode() for part in both)

    def read(self, i: int) -> Sample:
        """Return the texts as bytes."""
        return "\n".join(self.texts(i)).encode()

    def name(self, i: int) -> str:
        """Return the number of the sample."""
        return f"{self.spec}#{i}"

    @cached_property
    def layout(self) -> Layout:
        """There are no images."""
        return Layout(3, np.dtype(np.uint8))

    @cached_property
    def fingerprint(self) -> str:
        """Digest over all texts; labels have their own."""
        rest = () if self.second is None else (self.second.blob, self.second.offsets)
        return digest(self.first.blob, self.first.offsets, *rest)

    def renumbered(self, classes: tuple[str, ...]) -> LabelledTexts:
        """Return the same texts with labels that count by `classes`.

        Raises:
            DataError: for a class that `classes` lacks.
        """
        place = {name: k for k, name in enumerate(classes)}
        strange = [name for name in self.classes if name not in place]
        if strange:
            raise DataError(
                f"'{self.spec}' has the class '{strange[0]}', which the training texts lack ({', '.join(classes[:8])})."
            )
        table = np.array([place[name] for name in self.classes], dtype=np.int64)
        assert self.labels is not None
        return LabelledTexts(self.first, self.second, table[self.labels], classes, self.spec)


def open_labelled_texts(
    spec: str | os.PathLike[str] | LabelledTexts, *, text: Sequence[str] = (), label: str | None = None
) -> LabelledTexts:
    """Open texts with classes from a .jsonl, .csv or .tsv file with named fields.

    Args:
        spec: the file; a LabelledTexts passes through.
        text: field of the text, or the two fields of a pair; empty finds them by the usual names.
        label: field of the class; None finds it.

    Raises:
        DataError: for a file that cannot be read, a line that lacks a field, or no text at all.
        ConfigError: for fields that are not there.
    """
    if isinstance(spec, LabelledTexts):
        return spec
    path = Path(spec).expanduser()
    if path.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        raise ConfigError(f"'{path}': labelled texts come from a .jsonl, .csv or .tsv file with named fields.")
    columns: list[list[str]] = [[], []]
    labels: list[str] = []
    fields: tuple[tuple[str, ...], str] | None = None
    try:
        for number, row in _rows(path):
            fields = fields or _fields(path, list(row), tuple(text), label)
            missing = [name for name in (*fields[0], fields[1]) if row.get(name) in (None, "")]
            if missing:
                raise DataError(f"line {number} of '{path}' has no '{missing[0]}'. Fill it in, or leave the line out.")
            for column, name in zip(columns, fields[0], strict=False):
                column.append(str(row[name]))
            labels.append(str(row[fields[1]]))
    except OSError as error:
        raise DataError(f"the texts '{path}' cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the texts '{path}' are not UTF-8: {error}.") from error
    except csv.Error as error:
        raise DataError(f"the texts '{path}' are damaged: {error}.") from error
    if fields is None:
        raise DataError(f"'{path}' holds no texts.")
    return LabelledTexts.of(columns[0], labels, columns[1] or None, os.fspath(spec))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() != ".jsonl":
            table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            yield from ((table.line_num, row) for row in table)
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"line {number} of '{path}' is no JSON ({error}).") from error
            if not isinstance(row, dict):
                raise DataError(f"line {number} of '{path}' is no object with fields.")
            yield number, row


def _fields(path: Path, names: list[str], text: tuple[str, ...], label: str | None) -> tuple[tuple[str, ...], str]:
    """Return the fields of the text (or two) and of the class."""
    if len(text) > 2:
        raise ConfigError(f"a sample has one text or two, and {len(text)} fields are named.")
    for name in (*text, *([label] if label else [])):
        if name not in names:
            close = nearest(name, names)
            raise ConfigError(
                f"'{path}' has no field '{name}'"
                + (f"; did you mean '{close}'?" if close else "")
                + f" Its fields are {', '.join(map(str, names))}."
            )
    if not text:
        single = next(((n,) for n in TEXT_FIELDS[:-1] if n in names), None)
        pair = next((both for both in PAIR_FIELDS if all(n in names for n in both)), None)
        text = pair or single or next(((n,) for n in TEXT_FIELDS if n in names), ())
    label = label or next((n for n in LABEL_FIELDS if n in names), None)
    if not text or label is None:
        what = "a text" if not text else "a class"
        raise ConfigError(f"'{path}' has no field that looks like {what} among {', '.join(map(str, names))}: name it.")
    return text, label
