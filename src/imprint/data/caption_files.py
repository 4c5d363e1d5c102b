"""Files of captions: (image, caption) rows of .csv, .tsv, .txt, .jsonl and COCO's .json, as they are found in the wild.

Rules: columns are found by the names in the first line, whatever their order, or given; without such a line the image
stands before the first delimiter and the caption is the rest. With two columns, image first, a line is split at its
FIRST delimiter, and quotes around the rest are taken off when they are whole: captions with commas and stray quotes
survive, whether the writer quoted them or not. With more columns the rules of CSV hold.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imprint.core.errors import ConfigError, DataError, nearest
from imprint.data.index import is_image

Pair = tuple[str, str]

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".json")
IMAGE_COLUMNS = ("image", "file", "filepath", "filename", "file_name", "file_path", "image_name", "image_path", "path")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "comment", "description")
_LONGEST = 64  # lines that one quoted caption may run over
_QUOTED = re.compile(r'\s*"((?:[^"]|"")*)"\s*', re.DOTALL)


@dataclass(frozen=True)
class Columns:
    """Which columns to read; None finds them by the usual names.

    Attributes:
        image: name, or number from 0.
        caption: the same.
    """

    image: str | None = None
    caption: str | None = None


def read_pairs(path: Path, columns: Columns | None = None) -> Iterator[Pair]:
    """Yield (image, caption) of a file, in its order; captions may be empty, images are not.

    Raises:
        DataError: for files that cannot be read, or lines that are no pair.
        ConfigError: for columns that are not there.
    """
    columns = columns or Columns()
    kind = path.suffix.lower()
    try:
        if kind == ".json":
            yield from _coco(path)
        elif kind == ".jsonl":
            yield from _json_lines(path, columns)
        else:
            yield from _table(path, columns)
    except OSError as error:
        raise DataError(f"the captions '{path}' cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the captions '{path}' are not UTF-8 text: {error}.") from error
    except csv.Error as error:
        raise DataError(f"the captions '{path}' are damaged: {error}.") from error


def has_header(path: Path) -> bool:
    """Tell whether the first line of a table names a column of images and one of captions."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError):
        return False
    return _found(_cells(first, _delimiter(path, first))) is not None


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])]


def _delimiter(path: Path, first: str) -> str:
    if path.suffix.lower() == ".tsv" or "\t" in first:
        return "\t"
    return next((mark for mark in ("|", ";") if mark in first and "," not in first), ",")


def _found(names: list[str]) -> tuple[int, int] | None:
    """Return the positions of the two columns by their usual names."""
    plain = [name.lower().replace(" ", "_").replace("-", "_") for name in names]
    image = next((plain.index(name) for name in IMAGE_COLUMNS if name in plain), None)
    caption = next((plain.index(name) for name in CAPTION_COLUMNS if name in plain), None)
    return None if image is None or caption is None else (image, caption)


def _table(path: Path, columns: Columns) -> Iterator[Pair]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        if not first.strip():
            raise DataError(f"the captions '{path}' begin with an empty line, or are empty altogether.")
        delimiter = _delimiter(path, first)
        names = _cells(first, delimiter)
        image, caption, header = _chosen(path, names, columns)
        if not header:
            file.seek(0)
        rows = (
            _two_columns(path, file, delimiter, 2 if header else 1)
            if (len(names) == 2 or not header and len(names) > 2 and columns == Columns()) and image < caption
            else _many_columns(path, file, delimiter, image, caption, 2 if header else 1)
        )
        yield from rows


def _chosen(path: Path, names: list[str], columns: Columns) -> tuple[int, int, bool]:
    """Return the positions of image and caption, and whether the first line is a header."""
    if columns.image is None and columns.caption is None:
        if (found := _found(names)) is not None:
            return (*found, True)
        if len(names) >= 2 and is_image(names[0].rpartition("#")[0].encode() or names[0].encode()):
            return 0, len(names) - 1, False
        raise DataError(
            f"the captions '{path}' have the columns {names}; none is known to hold images and captions "
            f"({', '.join(IMAGE_COLUMNS[:4])} and {', '.join(CAPTION_COLUMNS[:3])} are). "
            "Name them by --image-column and --caption-column."
        )
    usual = _found(names)
    image = usual[0] if columns.image is None and usual else _position(path, names, columns.image or "0")
    caption = usual[1] if columns.caption is None and usual else _position(path, names, columns.caption or "1")
    by_name = any(word is not None and not word.isdigit() for word in (columns.image, columns.caption))
    return image, caption, by_name or usual is not None


def _position(path: Path, names: list[str], wanted: str) -> int:
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    near = nearest(wanted, names)
    hint = f" Did you mean '{near}'?" if near else ""
    raise ConfigError(f"the captions '{path}' have no column '{wanted}'.{hint} They have {names}.")


def _two_columns(path: Path, lines: Iterator[str], delimiter: str, number: int) -> Iterator[Pair]:
    """Yield rows split at the first delimiter; see the head of this file for quotes."""
    waiting: list[str] = []  # lines read ahead in search of a closing quote, and not used up
    while True:
        line = waiting.pop(0) if waiting else next(lines, None)
        if line is None:
            return
        number += 1
        if not line.strip():
            continue
        image, caption = _halves(line.rstrip("\r\n"), delimiter)
        if not image or caption is None:
            raise DataError(
                f"line {number - 1} of '{path}' is no pair of an image and a caption: {line.strip()[:80]!r}."
            )
        rest = caption.lstrip()
        if rest.startswith('"') and not _QUOTED.fullmatch(caption) and rest.count('"') % 2:
            # A caption quoted over several lines, or a stray quote: only a line that closes it tells.
            while len(waiting) < _LONGEST and (more := next(lines, None)) is not None:
                waiting.append(more)
                if '"' in more:
                    break
            whole = caption + "\n" + "".join(waiting).rstrip("\r\n")
            if waiting and _QUOTED.fullmatch(whole) and not any(_is_row(w, delimiter) for w in waiting):
                caption, number = whole, number + len(waiting)
                waiting = []
        quoted = _QUOTED.fullmatch(caption)
        yield image, quoted[1].replace('""', '"') if quoted else caption


def _halves(line: str, delimiter: str) -> tuple[str, str | None]:
    """Return image and caption of a line; the image may be quoted."""
    quoted = _QUOTED.match(line)
    if quoted and line[quoted.end() :].startswith(delimiter):
        return quoted[1].replace('""', '"').strip(), line[quoted.end() + 1 :]
    image, mark, caption = line.partition(delimiter)
    return image.strip(), caption if mark else None


def _is_row(line: str, delimiter: str) -> bool:
    image, caption = _halves(line, delimiter)
    return caption is not None and is_image(image.rpartition("#")[0].encode() or image.encode())


def _many_columns(
    path: Path, lines: Iterator[str], delimiter: str, image: int, caption: int, number: int
) -> Iterator[Pair]:
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= image or not row[image].strip():
            raise DataError(f"line {number + reader.line_num - 1} of '{path}' names no image: {row}.")
        yield row[image].strip(), row[caption] if len(row) > caption else ""


def _json_lines(path: Path, columns: Columns) -> Iterator[Pair]:
    chosen: tuple[str, str] | None = None
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"line {number} of '{path}' is no JSON: {error}.") from error
            if not isinstance(row, dict):
                raise DataError(f"line {number} of '{path}' is no JSON object with an image and a caption.")
            if chosen is None:
                names = list(map(str, row))
                image, caption, _ = _chosen_keys(path, names, columns)
                chosen = image, caption
            if not row.get(chosen[0]):
                raise DataError(f"line {number} of '{path}' has no '{chosen[0]}'.")
            for text in captions_in(row.get(chosen[1])):
                yield str(row[chosen[0]]), text


def _chosen_keys(path: Path, names: list[str], columns: Columns) -> tuple[str, str, bool]:
    if columns.image is None and columns.caption is None and _found(names) is None:
        raise DataError(
            f"the captions '{path}' have the entries {names}; none is known to hold images and captions. "
            "Name them by --image-column and --caption-column."
        )
    image, caption, header = _chosen(path, names, columns)
    return names[image], names[caption], header


def captions_in(value: Any) -> Iterator[str]:
    """Yield the captions of one entry: a text, a list of them, or of objects with a `raw` text (Karpathy's files)."""
    if isinstance(value, list):
        for part in value:
            yield from captions_in(part.get("raw", part.get("caption")) if isinstance(part, dict) else part)
    else:
        yield "" if value is None else str(value)


def _coco(path: Path) -> Iterator[Pair]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            told = json.load(file)
        names = {image["id"]: str(image["file_name"]) for image in told["images"]}
        rows = [(names[entry["image_id"]], str(entry["caption"])) for entry in told["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{path}' is no captions file in COCO's format (images with id and file_name, annotations with image_id "
            f"and caption): {type(error).__name__} {error}. Other pairs go into .jsonl, one object a line."
        ) from error
    yield from rows
