"""Datasets in Hugging Face's form, from disk."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import ConfigError, DataError, MissingExtra
from imprint.data.sources import open_source


def encoded(k: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 5), (k, 2 * k, 7)).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["u", "v"])})

    def split(size: int) -> Any:
        rows = {
            "image": [{"bytes": encoded(k), "path": None} for k in range(size)],
            "label": [k % 2 for k in range(size)],
        }
        return datasets.Dataset.from_dict(rows, features=features)

    datasets.DatasetDict({"train": split(9), "test": split(4)}).save_to_disk(str(tmp_path / "both"))
    split(5).save_to_disk(str(tmp_path / "one"))
    return tmp_path


def test_a_saved_folder_reads_encoded_bytes(saved: Path) -> None:
    source = open_source(saved / "one")
    assert len(source) == 5 and source.read(3) == encoded(3)
    assert source.classes == ("u", "v") and source.labels is not None and source.labels.tolist() == [0, 1, 0, 1, 0]
    assert source.fingerprint == open_source(saved / "one").fingerprint
    assert source.channels == 3 and source.dtype == np.uint8


def test_splits(saved: Path) -> None:
    assert len(open_source(saved / "both")) == 9
    assert len(open_source(f"hf:{saved / 'both'}:test")) == 4
    assert open_source(f"hf:{saved / 'both'}:test").fingerprint != open_source(saved / "both").fingerprint
    with pytest.raises(ConfigError, match="Did you mean 'test'"):
        open_source(f"hf:{saved / 'both'}:tests")


def test_a_dataset_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="hf:someone/some-set"):
        open_source("hf:someone/some-set")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"imprint\[hub\]"):
        open_source("hf:someone/some-set")
