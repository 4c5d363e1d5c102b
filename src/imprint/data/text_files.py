"""Documents read from files: plain text, JSON lines, tables, parquet, each alone, compressed, or inside .tar and .zip.

What is broken (a line that is no UTF-8, no JSON, or has no text where the others have it) is left out and counted.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from imprint.core.errors import ConfigError, DataError, nearest

PLAIN = (".txt", ".text")
LINES = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
PACKED = (".gz", ".bz2", ".xz")
SHARDS = (".tar", ".zip", ".tgz")
COLUMNS = ("text", "content", "document", "body", "article", "raw_content", "sentence", "caption", "story", "page")
_HEADING = re.compile(r"\s*= [^=](?:.*[^=])? =\s*")
_SHOWN = 3
_OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


@dataclass
class Faults:
    """What could not be read.

    Attributes:
        bad: lines or rows that were left out.
        seen: lines or rows in all.
        first: where and why, of the first few.
    """

    bad: int = 0
    seen: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str, why: str) -> None:
        """Count one that is left out."""
        self.bad += 1
        if len(self.first) < _SHOWN:
            self.first.append(f"{where}: {why}")

    @property
    def told(self) -> str:
        """The first few as words."""
        more = self.bad - len(self.first)
        return "; ".join(self.first) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Reader:
    """How to read documents.

    Attributes:
        column: field or column with the text; None finds it.
        document: what one document of plain text is, see `TextConfig.document`.
        faults: what was left out so far.
    """

    column: str | None
    document: str
    faults: Faults

    def documents(self, path: Path) -> Iterator[str]:
        """Yield the documents of a file, in its order.

        Raises:
            DataError: when the file cannot be opened.
            ConfigError: for a column that is not there.
        """
        try:
            if suffix_of(path.name) in SHARDS:
                yield from self._members(path)
            elif suffix_of(path.name) == ".parquet":
                yield from self._parquet(path)
            else:
                with open(path, "rb") as file:
                    yield from self._stream(file, path.name, os.fspath(path))
        except _DAMAGED as error:
            raise DataError(f"'{path}' cannot be read: {error}.") from error

    def _stream(self, file: IO[bytes], name: str, where: str) -> Iterator[str]:
        lower = name.lower()
        packed = next((end for end in PACKED if lower.endswith(end)), None)
        if packed is not None:
            with _OPENERS[packed](file) as inner:
                yield from self._stream(inner, name[: -len(packed)], where)
            return
        suffix = suffix_of(lower)
        if suffix in LINES:
            yield from self._json(file, where, whole=suffix == ".json")
        elif suffix in TABLES:
            yield from self._table(file, where, "\t" if suffix == ".tsv" else ",")
        else:
            yield from parted((line for _, line in self._lines(file, where)), self.document)

    def _members(self, path: Path) -> Iterator[str]:
        """Yield the documents of all files of text in an archive, which is read once from end to end."""
        found = False
        if suffix_of(path.name) == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if not info.is_dir() and holds_text(info.filename):
                        found = True
                        with archive.open(info) as inner:
                            yield from self._stream(inner, info.filename, f"{path}/{info.filename}")
        else:
            with tarfile.open(path, mode="r|*") as shard:
                for member in shard:
                    content = shard.extractfile(member) if member.isreg() and holds_text(member.name) else None
                    if content is not None:
                        found = True
                        yield from self._stream(content, member.name, f"{path}/{member.name}")
        if not found:
            raise DataError(f"the archive '{path}' holds no file of text ({', '.join((*PLAIN, *LINES, *TABLES))}).")

    def _lines(self, file: IO[bytes], where: str) -> Iterator[tuple[int, str]]:
        """Yield (number from 1, line without its end); lines that are no UTF-8 are left out."""
        first = file.read(4)
        rest: Iterable[bytes] = _chained(first, file)
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            rest = (line.encode() for line in io.StringIO((first + file.read()).decode("utf-16", "replace")))
        for number, line in enumerate(rest, 1):
            self.faults.seen += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, line.rstrip(b"\r\n").decode()
            except UnicodeDecodeError as error:
                self.faults.add(f"line {number} of '{where}'", f"no UTF-8 ({error.reason} at byte {error.start})")

    def _json(self, file: IO[bytes], where: str, *, whole: bool) -> Iterator[str]:
        """Yield the texts of JSON lines or, of a `.json` file, of one value: a text, an object, or a list of those."""
        lines = self._lines(file, where)
        if whole:
            texts = list(lines)
            try:
                value = json.loads("\n".join(line for _, line in texts))
            except ValueError:
                lines = iter(texts)  # JSON lines by another name, or broken
            else:
                entries = value if isinstance(value, list) else [value]
                self.faults.seen += len(entries)
                for place, entry in enumerate(entries, 1):
                    yield from self._entry(entry, f"entry {place} of '{where}'")
                return
        for number, line in lines:
            if not line.strip():
                continue
            at = f"line {number} of '{where}'"
            try:
                entry = json.loads(line)
            except ValueError as error:
                self.faults.add(at, f"no JSON ({error})")
                continue
            yield from self._entry(entry, at)

    def _entry(self, entry: Any, at: str) -> Iterator[str]:
        """Yield the text of one JSON value; nothing where there is none."""
        if isinstance(entry, str) and self.column is None:
            yield entry
            return
        if not isinstance(entry, dict):
            self.faults.add(at, "no JSON object with a text")
            return
        names = (self.column,) if self.column is not None else COLUMNS
        name = next((name for name in names if name in entry), None)
        value = entry[name] if name is not None else None
        if isinstance(value, str):
            yield value
        elif name is None or value is not None:
            near = nearest(self.column, list(map(str, entry))) if self.column is not None else None
            known = ", ".join(map(str, list(entry)[:8]))
            wanted = f"no field '{self.column}'" if self.column is not None else "no field that is known to hold text"
            hint = f"; did you mean '{near}'?" if near else "; name it by --data.text.column"
            self.faults.add(at, f"'{name}' is no text" if name is not None else f"{wanted} among {known}{hint}")

    def _table(self, file: IO[bytes], where: str, delimiter: str) -> Iterator[str]:
        csv.field_size_limit(1 << 30)
        rows = csv.reader((line + "\n" for _, line in self._lines(file, where)), delimiter=delimiter)
        try:
            names = next(rows, [])
            at = names.index(column_of(names, self.column, where))
            for row in rows:
                if len(row) > at:
                    yield row[at]
                elif any(row):
                    self.faults.add(f"line {rows.line_num} of '{where}'", f"{len(row)} of {len(names)} columns")
        except csv.Error as error:
            raise DataError(f"line {rows.line_num} of '{where}' is damaged: {error}.") from error

    def _parquet(self, path: Path) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(path)
            texts = [
                f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
            ]
            name = column_of(texts, self.column, os.fspath(path))
            for batch in file.iter_batches(batch_size=4096, columns=[name]):
                self.faults.seen += len(batch)
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
        except pa.ArrowException as error:
            raise DataError(f"'{path}' cannot be read as parquet: {error}.") from error


def column_of(names: list[str], wanted: str | None, where: str) -> str:
    """Return the column with the text: the one that is wanted, a usual name, or the only one.

    Raises:
        ConfigError: when it is not there, or not clear.
    """
    if wanted is not None and wanted in names:
        return wanted
    if wanted is not None:
        near = nearest(wanted, names)
        hint = f" Did you mean '{near}'?" if near else ""
        raise ConfigError(f"'{where}' has no column '{wanted}' with text.{hint} It has {', '.join(names) or 'none'}.")
    plain = {name.strip().lower(): name for name in reversed(names)}
    found = next((plain[name] for name in COLUMNS if name in plain), names[0] if len(names) == 1 else None)
    if found is None:
        raise ConfigError(
            f"'{where}' has the columns {', '.join(names[:12]) or 'none'}, and none is known to hold text "
            f"({', '.join(COLUMNS[:4])}, ... are). Name it by --data.text.column."
        )
    return found


def parted(lines: Iterable[str], document: str) -> Iterator[str]:
    """Yield documents of lines by the rule `file`, `line`, `blank` or `heading`."""
    if document == "line":
        yield from lines
        return
    held: list[str] = []
    for line in lines:
        if held and ((document == "blank" and not line.strip()) or (document == "heading" and is_heading(line))):
            yield "\n".join(held)
            held = []
        held.append(line)
    yield "\n".join(held)


def is_heading(line: str) -> bool:
    """Tell whether a line is a title as WikiText writes it, ` = Title = `; those of sections have more `=`."""
    return _HEADING.fullmatch(line) is not None


def suffix_of(name: str) -> str:
    """Return the suffix that tells how a file is read, that of packing left out; `.tgz` for every compressed tar."""
    base = name.lower().rpartition("/")[2]
    packed = next((end for end in PACKED if base.endswith(end)), None)
    inner = os.path.splitext(base[: -len(packed)])[1] if packed is not None else os.path.splitext(base)[1]
    return ".tgz" if packed is not None and inner == ".tar" else inner


def holds_text(name: str) -> bool:
    """Tell whether a file by its name holds text of its own, and is not hidden."""
    base = name.rpartition("/")[2]
    return suffix_of(base) in (*PLAIN, *LINES, *TABLES) and not base.startswith(".") and "__MACOSX" not in name


def _chained(first: bytes, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a stream of which the first bytes were taken."""
    begun = first + file.readline() if first and not first.endswith(b"\n") else first
    yield from begun.splitlines(keepends=True)  # four bytes may hold several short lines
    yield from file
