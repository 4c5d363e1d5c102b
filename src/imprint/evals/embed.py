"""Features of a source as an open file: Parquet with names and labels, or a plain NumPy array."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError, DataError
from imprint.data.batch import Normalise
from imprint.evals.features import SourceNames, stream
from imprint.evals.protocol import ProtocolConfig
from imprint.evals.represent import evaluation_view

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder
    from imprint.data.sources import Source

SUFFIXES = (".parquet", ".npy")
Rows = Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]


def embed(
    encoder: Encoder,
    source: Source,
    out: str | os.PathLike[str],
    *,
    normalise: Normalise | None = None,
    config: ProtocolConfig | None = None,
) -> Path:
    """Write one feature vector per image, in the order of the source, streaming.

    `.parquet` has the columns `index` (int64), `name` (string), `label` (string, null without labels) and `embedding`
    (fixed-size list of float32), and the settings under the key `imprint` of its metadata. `.npy` holds the float32
    array (N, D); beside it lie `.names.txt` (one name a line, line breaks escaped) and `.json` (classes, labels,
    settings). Files are written aside and renamed, so a killed run leaves no half file under the final name.

    Raises:
        ConfigError: for another suffix.
        DataError: for an empty source.
    """
    out = Path(out)
    config = config or ProtocolConfig()
    check_suffix(out)
    if len(source) == 0:
        raise DataError(f"source '{source.spec}' is empty; there is nothing to embed.")
    size = config.image_size or encoder.image_size
    about: dict[str, Any] = {
        "encoder": encoder.name,
        "source": source.spec,
        "fingerprint": source.fingerprint,
        "image_size": size,
        "tokens": config.tokens,
        "layers": list(config.layers),
    }
    batches = stream(
        encoder,
        source,
        view=evaluation_view(size),
        normalise=normalise or Normalise(),
        batch_size=config.batch_size,
        workers=config.workers,
        device=config.device,
        precision=config.precision,
        tokens=config.tokens,
        layers=config.layers,
    )
    rows: Rows = ((features[0].cpu().numpy(), batch.index_B.numpy()) for features, batch in batches)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        if out.suffix == ".parquet":
            _write_parquet(rows, source, aside, about)
        else:
            _write_npy(rows, source, aside, out, about)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    return out


def check_suffix(out: Path) -> None:
    """Refuse a file name that `embed` does not know how to write, before any work is done."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"cannot write embeddings to '{out.name}'; end the name in .parquet or .npy.")


def _labels(source: Source, index: npt.NDArray[np.int64]) -> list[str | None]:
    if source.labels is None:
        return [None] * len(index)
    picked = np.asarray(source.labels)[index]
    return [source.classes[i] if i < len(source.classes) else str(i) for i in picked.tolist()]


def _write_parquet(rows: Rows, source: Source, path: Path, about: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None
    schema: Any = None
    try:
        for block, index in rows:
            if schema is None:
                schema = pa.schema(
                    [
                        pa.field("index", pa.int64(), nullable=False),
                        pa.field("name", pa.string(), nullable=False),
                        pa.field("label", pa.string()),
                        pa.field("embedding", pa.list_(pa.float32(), block.shape[1]), nullable=False),
                    ],
                    metadata={"imprint": json.dumps(about)},
                )
                writer = pq.ParquetWriter(path, schema)
            columns = [
                pa.array(index),
                pa.array(SourceNames(source, index)[:], pa.string()),
                pa.array(_labels(source, index), pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), block.shape[1]),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise DataError(f"not one image of '{source.spec}' could be read.")


def _write_npy(rows: Rows, source: Source, aside: Path, out: Path, about: dict[str, Any]) -> None:
    indices: list[npt.NDArray[np.int64]] = []
    width, count = 0, 0
    with open(aside, "wb") as handle:
        # The header is rewritten at the end, when the number of rows is known; its length does not depend on it.
        for block, index in rows:
            if not width:
                width = block.shape[1]
                _header(handle, len(source), width)
            handle.write(block.tobytes())
            indices.append(index)
            count += len(index)
        if not width:
            raise DataError(f"not one image of '{source.spec}' could be read.")
        handle.seek(0)
        _header(handle, count, width)
    index = np.concatenate(indices)
    names = (
        name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r") for name in SourceNames(source, index)
    )
    out.with_suffix(".names.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    labels = None if source.labels is None else np.asarray(source.labels)[index].tolist()
    sidecar = {**about, "classes": list(source.classes), "labels": labels, "index": index.tolist()}
    out.with_suffix(".json").write_text(json.dumps(sidecar) + "\n", encoding="utf-8")


def _header(handle: Any, rows: int, width: int) -> None:
    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(handle, header)
