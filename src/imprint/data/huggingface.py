"""Hugging Face datasets: `hf:NAME`, `hf:NAME:SPLIT`, `hf:NAME@CONFIG:SPLIT`, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from imprint.core.errors import BadImage, ConfigError, DataError, MissingExtra, unknown
from imprint.data.labels import read_labels
from imprint.data.sources import Sample, Source, digest
from imprint.data.text_files import column_of

_LABELS = ("label", "labels", "fine_label", "class", "cls", "target")


class HuggingFaceSource(Source):
    """A `datasets.Dataset` with an image column; encoded bytes are read as they are stored, nothing is decoded.

    The image column is the first of type `Image`; labels are a `ClassLabel` column or one called `label` of ints or
    names.
    """

    def __init__(self, dataset: Any, spec: str) -> None:
        import datasets

        self.spec = spec
        images = [n for n, f in dataset.features.items() if isinstance(f, datasets.Image)]
        if not images:
            raise DataError(f"'{spec}' has no image column; its columns are {list(dataset.features)}.")
        self.column = images[0]
        self._rows = (
            dataset.select_columns([self.column])
            .cast_column(self.column, datasets.Image(decode=False))
            .with_format("arrow")
        )
        self._fingerprint = str(dataset._fingerprint)
        self.classes, self.labels = self._labelled(dataset, datasets.ClassLabel)

    def _labelled(self, dataset: Any, kind: type) -> tuple[tuple[str, ...], Any]:
        typed = [n for n, f in dataset.features.items() if isinstance(f, kind)]
        name = next((n for n in (*_LABELS, *typed) if n in dataset.features), None)
        if name is None:
            return (), None
        values = dataset.select_columns([name]).with_format("numpy")[:][name]
        if values.dtype.kind == "f" or (values.dtype.kind in "iu" and values.min(initial=0) < 0):
            return (), None  # missing labels: nulls, or the -1 of a hidden test set
        feature = dataset.features[name]
        return read_labels(
            values, len(dataset), self.spec, getattr(feature, "names", ()) if isinstance(feature, kind) else ()
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def read(self, i: int) -> Sample:
        """Return the encoded image of row `i`."""
        entry = self._rows[i][self.column][0].as_py()
        if entry is None or (entry["bytes"] is None and entry["path"] is None):
            raise BadImage("empty", "no image in this row")
        if entry["bytes"] is not None:
            return bytes(entry["bytes"])
        return Path(entry["path"]).read_bytes()

    def name(self, i: int) -> str:
        """Return the dataset and the row."""
        return f"{self.spec}[{i}]"

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the fingerprint that the datasets library keeps."""
        return digest(self._fingerprint, self.column, str(len(self)))


def open_huggingface(words: str) -> HuggingFaceSource:
    """Open `NAME[@CONFIG][:SPLIT]`, or a folder written by `save_to_disk`, `FOLDER[:SPLIT]`, as images.

    Without a split, the only one or `train` is taken. A name that is no local folder is downloaded from the hub by the
    datasets library, on request only.

    Raises:
        MissingExtra: when the datasets library is absent.
        DataError: when the dataset cannot be loaded.
    """
    return HuggingFaceSource(_loaded(words), f"hf:{words}")


def huggingface_texts(words: str, column: str | None) -> Iterator[str]:
    """Yield the texts of a dataset; the words are those of `open_huggingface`.

    Raises:
        MissingExtra: when the datasets library is absent.
        DataError: when the dataset cannot be loaded.
        ConfigError: when its column of text is not there, or not clear.
    """
    dataset = _loaded(words)
    texts = [name for name, kind in dataset.features.items() if getattr(kind, "dtype", "").endswith("string")]
    name = column_of(texts, column, f"hf:{words}")
    for rows in dataset.select_columns([name]).iter(batch_size=4096):
        yield from (text for text in rows[name] if text is not None)


def _loaded(words: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "hub", f"reading 'hf:{words}'") from error
    name, split = (words, "") if Path(words).is_dir() else _parted(words)
    try:
        if Path(name).is_dir() and any(Path(name, f).is_file() for f in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(name)
        else:
            name, _, config = name.partition("@")
            loaded = datasets.load_dataset(name, config or None, split=split or None)
            split = ""
    except Exception as error:  # the library raises its own, the network's and the disk's kinds
        raise DataError(f"the dataset 'hf:{words}' cannot be loaded: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if not split:
            split = next(iter(loaded)) if len(loaded) == 1 else "train"
        if split not in loaded:
            raise unknown(f"split of '{name}'", split, list(loaded))
        loaded = loaded[split]
    if not isinstance(loaded, datasets.Dataset):
        raise ConfigError(f"'hf:{words}' is a stream, which cannot be read at random.")
    return loaded


def _parted(words: str) -> tuple[str, str]:
    name, _, split = words.partition(":")  # a split may have colons of its own: train[:10%]
    return name, split
