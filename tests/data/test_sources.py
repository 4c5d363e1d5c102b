"""Opening words, subsets, chains and label alignment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import ConfigError, DataError
from imprint.data.arrays import ArraySource
from imprint.data.sources import digest, open_source, spread


def test_an_open_source_passes_through() -> None:
    source = ArraySource(np.zeros((2, 4, 4, 3), np.uint8))
    assert open_source(source) is source
    assert open_source([source]) is source


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ("fotos", ConfigError, "photos"),
        ("photos:validation", ConfigError, "train"),
        ("/nowhere/at/all", DataError, "does not exist"),
        ("/nowhere/x-{0..2}.tar", DataError, "x-0.tar"),
    ],
)
def test_words_that_open_nothing_say_so(words: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        open_source(words)


def test_files_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    with pytest.raises(ConfigError, match="no kind of source"):
        open_source(tmp_path / "a.docx")
    with pytest.raises(DataError, match="compressed tar"):
        open_source(tmp_path / "b.tar.gz")
    with pytest.raises(ConfigError, match="at least one source"):
        open_source(())


def test_the_layout_is_the_widest_found(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert open_source(tmp_path).channels == 1
    Image.new("RGBA", (8, 8)).save(tmp_path / "b.png")
    source = open_source(tmp_path)
    assert (source.channels, source.dtype) == (3, np.uint8)
    assert source.subset([0]).channels == 3
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "c.png")
    assert open_source(tmp_path).dtype == np.uint16


def test_spread_and_digest() -> None:
    assert spread(10, 3).tolist() == [0, 3, 6]
    assert spread(2, 16).tolist() == [0, 1]
    assert spread(0, 4).size == 0
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(np.zeros(4, np.uint8)) != digest(np.zeros((2, 2), np.uint8))
