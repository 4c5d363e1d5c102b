"""Folders with damaged files of every kind: all are named, training data goes on; too many stop the run."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from imprint.core.errors import DataError
from imprint.data.loader import Loader, sweep
from imprint.data.sources import open_source
from imprint.data.views import CenterCrop, Crop, Look, View

VIEWS = (View(name="view", count=2, crop=Crop(size=16), look=Look(flip=0.5)),)
PLAIN = View(name="view", crop=CenterCrop(size=16, resize=16))


def picture(k: int, form: str) -> bytes:
    pixels = np.random.default_rng(k).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    stream = BytesIO()
    if form == "npy":
        np.save(stream, pixels)
    elif form == "tiff":
        tifffile.imwrite(stream, pixels, photometric="rgb")
    else:
        Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def png_bomb() -> bytes:
    """Return a PNG of a few hundred kB that announces, and would unpack to, 10 gigapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 100_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def npy_bomb() -> bytes:
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 3)})
    return stream.getvalue()


def flipped(k: int) -> bytes:
    data = bytearray(picture(k, "png"))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(x ^ 0xFF for x in data[middle : middle + 64])
    return bytes(data)


BAD: dict[str, Callable[[int], tuple[str, bytes]]] = {
    "empty": lambda k: ("jpg", b""),
    "text": lambda k: ("jpg", b"<html>404 not found</html>"),
    "cut-jpeg": lambda k: ("jpg", picture(k, "jpeg")[:500]),
    "cut-png": lambda k: ("png", picture(k, "png")[:900]),
    "cut-npy": lambda k: ("npy", picture(k, "npy")[:400]),
    "cut-tiff": lambda k: ("tif", picture(k, "tiff")[:60]),
    "header-only": lambda k: ("jpg", picture(k, "jpeg")[:20]),
    "flipped": lambda k: ("png", flipped(k)),
    "noise": lambda k: ("webp", np.random.default_rng(k).bytes(2000)),
    "png-bomb": lambda k: ("png", png_bomb()),
    "npy-bomb": lambda k: ("npy", npy_bomb()),
}


def plant(root: Path, good: int, bad: int) -> set[str]:
    """Write a mixed folder; return the names of the bad files (some unreadable, as dangling links are)."""
    forms = {"jpeg": "jpg", "png": "png", "webp": "webp", "bmp": "bmp", "tiff": "tif", "npy": "npy"}
    root.mkdir()
    for k in range(good):
        form = list(forms)[k % len(forms)]
        (root / f"{k:04d}-good.{forms[form]}").write_bytes(picture(k, form))
    names = set()
    kinds = [*BAD, "dangling"]
    for k in range(bad):
        kind = kinds[k % len(kinds)]
        if kind == "dangling":
            name = f"{7 * k:04d}-{kind}.jpg"
            (root / name).symlink_to(root / "gone")
        else:
            extension, data = BAD[kind](k)
            name = f"{7 * k:04d}-{kind}.{extension}"
            (root / name).write_bytes(data)
        names.add(name)
    return names


def named(path: Path) -> dict[str, dict[str, object]]:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({e["name"] for e in entries}) == len(entries), "a file was named twice"
    return {e["name"]: e for e in entries}


def test_five_percent_bad_files_are_all_named_and_training_goes_on(tmp_path: Path) -> None:
    bad = plant(tmp_path / "data", 228, 12)
    source = open_source(tmp_path / "data")
    path = tmp_path / "quarantine.jsonl"
    with Loader(source, VIEWS, batch_size=16, seed=1, workers=2, bad_limit=0.05, quarantine_path=path) as loader:
        steps = 3 * loader.steps_per_epoch
        batches = list(loader.batches(0, steps))
    assert len(batches) == steps
    entries = named(path)
    assert set(entries) == bad
    for name, entry in entries.items():
        assert source.name(int(str(entry["index"]))) == name
        assert entry["reason"] in (
            "corrupt", "truncated", "empty", "not-an-image", "too-large", "unsupported", "unreadable"
        )  # fmt: skip
    kinds = {name.split("-", 1)[1].rsplit(".", 1)[0]: entry["reason"] for name, entry in entries.items()}
    assert kinds["empty"] == "empty" and kinds["dangling"] == "unreadable"
    assert kinds["png-bomb"] == "too-large" and kinds["npy-bomb"] in ("too-large", "truncated")
    used = {source.name(int(i)) for batch in batches for i in batch.index_B}
    assert not used & bad and len(used) == 228
    assert all(batch.views["view"].shape == (2, 16, 3, 16, 16) for batch in batches)


def test_the_same_data_comes_with_any_workers_and_after_a_restart(tmp_path: Path) -> None:
    plant(tmp_path / "data", 60, 3)
    source = open_source(tmp_path / "data")

    def run(workers: int, start: int, name: str) -> list[torch.Tensor]:
        with Loader(
            source, VIEWS, batch_size=12, seed=1, workers=workers, bad_limit=0.1, quarantine_path=tmp_path / name
        ) as loader:
            return [batch.views["view"] for batch in loader.batches(start, 15)]

    whole = run(1, 0, "a.jsonl")
    for start, again in ((0, run(4, 0, "b.jsonl")), (8, run(2, 8, "a.jsonl"))):
        for a, b in zip(whole[start:], again, strict=True):
            assert torch.equal(a, b)
    assert named(tmp_path / "a.jsonl").keys() == named(tmp_path / "b.jsonl").keys()


def test_twenty_percent_stop_the_run_and_it_says_why(tmp_path: Path) -> None:
    bad = plant(tmp_path / "data", 96, 24)
    path = tmp_path / "quarantine.jsonl"
    source = open_source(tmp_path / "data")
    with (
        Loader(source, VIEWS, batch_size=16, seed=1, workers=2, quarantine_path=path) as loader,
        pytest.raises(DataError) as caught,
    ):
        for _ in loader.batches():
            pass
    message = str(caught.value)
    assert "of 120 samples" in message and "limit of 5.0%" in message and str(path) in message
    entries = named(path)
    assert 7 <= len(entries) <= 7 + 2 and set(entries) <= bad  # each thread may have had one in hand
    assert any(name in message for name in entries)


def test_an_evaluation_pass_names_them_and_goes_on(tmp_path: Path) -> None:
    bad = plant(tmp_path / "data", 57, 12)
    source = open_source(tmp_path / "data")
    path = tmp_path / "quarantine.jsonl"
    batches = list(sweep(source, PLAIN, batch_size=16, workers=2, bad_limit=0.2, quarantine_path=path))
    kept = [source.name(int(i)) for batch in batches for i in batch.index_B]
    assert kept == sorted(kept) and len(kept) == 57 and not set(kept) & bad
    assert set(named(path)) == bad


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser reads everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    plant(tmp_path / "data", 20, 0)
    (tmp_path / "data" / "0003-good.webp").chmod(0)
    source = open_source(tmp_path / "data")
    path = tmp_path / "quarantine.jsonl"
    list(sweep(source, PLAIN, batch_size=8, workers=1, quarantine_path=path))
    assert named(path)["0003-good.webp"]["reason"] == "unreadable"


def test_a_file_that_vanishes_during_the_run_is_replaced(tmp_path: Path) -> None:
    plant(tmp_path / "data", 40, 0)
    source = open_source(tmp_path / "data")
    path = tmp_path / "quarantine.jsonl"
    (tmp_path / "data" / "0006-good.jpg").unlink()
    with Loader(source, VIEWS, batch_size=8, seed=1, workers=2, quarantine_path=path) as loader:
        batches = list(loader.batches(0, 10))
    assert len(batches) == 10
    assert list(named(path)) == ["0006-good.jpg"]
