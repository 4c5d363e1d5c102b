"""Parquet files with a column of encoded images, the form of many published datasets.

Parquet compresses groups of rows, so it cannot be read at random. The image column is therefore copied once, row
group by row group, into an uncompressed Arrow file in the user's cache, and memory-mapped from there; it takes as much
disk as the images do, and is written again when a file's size or time changes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imprint.core.errors import BadImage, DataError
from imprint.data.compact import cache_path
from imprint.data.labels import read_labels
from imprint.data.patterns import expanded
from imprint.data.sources import Sample, Source, digest

_IMAGES = ("image", "img", "jpg", "png", "bytes", "image_bytes", "data")
_LABELS = ("label", "labels", "class", "cls", "target", "fine_label")


class ParquetSource(Source):
    """Rows of one or several parquet files with the same columns.

    The image column holds bytes, or a struct with `bytes` (and `path`), as Hugging Face writes it; it is the one
    called `image`, `img`, `jpg`, `png`, `bytes`, `image_bytes` or `data`, or the only one of that kind. Labels are a
    column called `label`, `labels`, `class`, `cls`, `target` or `fine_label` of ints or names.
    """

    def __init__(self, paths: Sequence[Path], spec: str) -> None:
        self.spec, self.paths = spec, tuple(paths)
        schema = _schema(self.paths[0])
        self.column = image_column(schema, spec)
        self._stamp = [f"{p.resolve()} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in self.paths]
        self._rows = _mapped(cache_path("parquet", self.column, *self._stamp), self.paths, self.column)
        self.classes, self.labels = self._labelled(schema)

    def _labelled(self, schema: pa.Schema) -> tuple[tuple[str, ...], Any]:
        name = next((n for n in _LABELS if n in schema.names), None)
        if name is None:
            return (), None
        values = np.concatenate([pq.read_table(p, columns=[name])[name].to_numpy() for p in self.paths])
        if values.dtype.kind == "f" or (values.dtype.kind in "iu" and values.min(initial=0) < 0):
            return (), None  # missing labels: nulls, or the -1 of a hidden test set
        return read_labels(values, len(self), self.spec, class_names(schema, name))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def read(self, i: int) -> Sample:
        """Return the encoded image of row `i`."""
        data = self._rows[i].as_py()
        if data is None:
            raise BadImage("empty", "no image in this row")
        return bytes(data)

    def name(self, i: int) -> str:
        """Return the source and the row."""
        return f"{self.spec}[{i}]"

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the files' paths, sizes and times."""
        return digest(self.column, *self._stamp)


def open_parquet(text: str) -> ParquetSource:
    """Open a parquet file, or a pattern of them.

    Raises:
        DataError: when a file is missing, damaged, or has no column of images.
    """
    return ParquetSource(expanded(text), text)


def image_column(schema: pa.Schema, where: str) -> str:
    """Return the name of the column that holds encoded images.

    Raises:
        DataError: when there is none, or several and none has a usual name.
    """
    fits = [f.name for f in schema if _is_bytes(f.type) or (pa.types.is_struct(f.type) and _has_bytes(f.type))]
    named = [n for n in _IMAGES if n in fits]
    if named or len(fits) == 1:
        return named[0] if named else fits[0]
    raise DataError(
        f"'{where}' has no column that is clearly the image among {schema.names}. Name it 'image' (bytes, or a struct "
        "with 'bytes')."
    )


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Return the class names that Hugging Face stores in a schema's metadata, or nothing."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(info["names"])
    except (KeyError, ValueError, TypeError):
        return ()


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_bytes(kind: pa.StructType) -> bool:
    return kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type)


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"'{path}' cannot be read as parquet: {error}") from error


def _mapped(path: Path, files: Sequence[Path], column: str) -> pa.ChunkedArray:
    if not path.exists():
        _copy(path, files, column)
    with pa.memory_map(os.fspath(path)) as stream:
        return pa.ipc.open_file(stream).read_all()["image"]


def _copy(path: Path, files: Sequence[Path], column: str) -> None:
    schema = pa.schema([("image", pa.large_binary())])
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for file in files:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=256, columns=[column]):
                    images = batch.column(0)
                    if pa.types.is_struct(images.type):
                        images = images.field("bytes")
                    writer.write_batch(pa.record_batch([images.cast(pa.large_binary())], schema=schema))
        os.replace(temporary, path)
        temporary = ""
    except (OSError, pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        raise DataError(
            f"the images of {len(files)} parquet files cannot be copied to '{path.parent}': {error}. Check the files "
            "and the space there; $IMPRINT_CACHE chooses another place."
        ) from error
    finally:
        if temporary:
            os.unlink(temporary)
