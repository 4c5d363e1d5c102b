"""Packed names and cache files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imprint.data.compact import Names, cache_dir, cache_path, read_cache, write_cache


def test_names_pack_and_unpack() -> None:
    words = [b"a", b"", b"caf\xc3\xa9", b"x" * 300]
    names = Names.of(words)
    assert list(names) == words and names[1:3] == words[1:3] and len(names) == 4
    joined = Names.packed([names.part(2, 4), names.part(0, 1)])
    assert list(joined) == [*words[2:], b"a"]
    assert list(Names.of([])) == [] and list(Names.packed([])) == []


def test_a_million_names_are_small() -> None:
    names = Names.of([b"image_%08d.jpg" % k for k in range(100_000)])
    assert names.blob.nbytes + names.offsets.nbytes == 100_000 * 18 + 4 * 100_001


def test_arrays_come_back_mapped_and_read_only(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(7, dtype=np.int64).reshape(7, 1),
        "b": np.zeros(0, np.uint8),
        "c": np.array([1.5], np.float32),
    }
    assert write_cache(tmp_path / "deep" / "x.bin", arrays)
    found = read_cache(tmp_path / "deep" / "x.bin")
    assert found is not None and found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1
    assert read_cache(tmp_path / "none.bin") is None
    assert write_cache(tmp_path / "y.bin", {"b": np.zeros(0)})
    assert read_cache(tmp_path / "y.bin") is not None


def test_a_mapped_file_survives_its_replacement(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_cache(path, {"a": np.arange(100_000)})
    old = read_cache(path)
    write_cache(path, {"a": np.zeros(3)})
    assert old is not None and int(old["a"][99_999]) == 99_999


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPRINT_CACHE", "/somewhere")
    assert cache_dir() == Path("/somewhere")
    monkeypatch.delenv("IMPRINT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/imprint")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_dir() == Path.home() / "Library" / "Caches" / "imprint"
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_dir() == Path.home() / ".cache" / "imprint"
    assert cache_path("index", "a", "b") != cache_path("index", "ab")
