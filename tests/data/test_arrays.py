"""Images in memory and in numpy files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from imprint.core.errors import BadImage, DataError
from imprint.data.arrays import ArraySource
from imprint.data.sources import open_source

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((5, 9, 7, 3), None),
        ((5, 9, 7, 1), None),
        ((5, 9, 7), None),
        ((5, 12, 64, 64), None),
        ((5, 3, 9, 7), "chw"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tensor", [False, True])
def test_every_order_reads_as_rows_columns_channels(
    shape: tuple[int, ...], order: Literal["chw"] | None, dtype: type, tensor: bool
) -> None:
    images = RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    source = ArraySource(torch.from_numpy(images) if tensor else images, order=order)
    got = source.read(2)
    assert isinstance(got, np.ndarray) and got.flags.c_contiguous and got.dtype == dtype
    channels_first = shape in ((5, 12, 64, 64), (5, 3, 9, 7))
    want = images[2].transpose(1, 2, 0) if channels_first else images[2].reshape(*images[2].shape[:2], -1)
    np.testing.assert_array_equal(got, want)
    assert source.channels == want.shape[2] and source.dtype == dtype


def test_the_order_is_guessed_from_the_short_axis() -> None:
    assert ArraySource(np.zeros((2, 3, 32, 32), np.uint8)).channels == 3
    assert ArraySource(np.zeros((2, 32, 32, 4), np.uint8)).channels == 4
    with pytest.raises(DataError, match="order="):
        ArraySource(np.zeros((2, 20, 32, 32), np.uint8))
    assert ArraySource(np.zeros((2, 20, 32, 32), np.uint8), order="chw").channels == 20


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_rounded_to_eight_bits(dtype: type) -> None:
    images = np.linspace(0, 1, 256, dtype=dtype).reshape(1, 16, 16)
    got = ArraySource(images).read(0)
    assert isinstance(got, np.ndarray) and got.dtype == np.uint8
    np.testing.assert_array_equal(got.reshape(-1), np.arange(256))


def test_values_out_of_range_are_refused_and_nan_is_a_bad_sample() -> None:
    with pytest.raises(DataError, match=r"\[-1, 1\]"):
        ArraySource(np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 4, 4, 3))
    images = np.zeros((3, 4, 4, 3), np.float32)
    images[1, 0, 0, 0] = np.nan
    source = ArraySource(images)
    assert isinstance(source.read(0), np.ndarray)
    with pytest.raises(BadImage, match="corrupt"):
        source.read(1)
    with pytest.raises(DataError, match="int64"):
        ArraySource(np.zeros((1, 4, 4, 3), np.int64))


def test_lists_may_differ_in_size() -> None:
    source = ArraySource([np.zeros((4, 6, 3), np.uint8), np.ones((9, 5, 3), np.uint8)], labels=[1, 0])
    assert source.read(1).shape == (9, 5, 3)  # type: ignore[union-attr]
    assert source.classes == ("0", "1")


@pytest.mark.parametrize(
    ("labels", "says"), [([1], "1 labels for 2"), ([0, -1], "negative"), ([0.5, 1.5], "ints or names")]
)
def test_labels_that_do_not_fit(labels: list[float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        ArraySource(np.zeros((2, 4, 4, 3), np.uint8), labels=labels)


def test_names_are_numbered_in_order_and_numbers_stay() -> None:
    images = np.zeros((3, 4, 4, 3), np.uint8)
    named = ArraySource(images, labels=["dog", "ant", "dog"])
    assert named.classes == ("ant", "dog") and named.labels is not None and named.labels.tolist() == [1, 0, 1]
    numbered = ArraySource(images, labels=["10", "9", "0"])
    assert numbered.labels is not None and numbered.labels.tolist() == [10, 9, 0]
    assert len(numbered.classes) == 11


def test_npy_is_mapped_and_npz_brings_labels(tmp_path: Path) -> None:
    images = RNG.integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "b.npz", x_train=images, y_train=np.arange(6) % 3, classes=np.array(["u", "v", "w"]))
    plain, labelled = open_source(tmp_path / "a.npy"), open_source(tmp_path / "b.npz")
    assert isinstance(plain, ArraySource) and isinstance(plain._images, np.memmap)
    np.testing.assert_array_equal(plain.read(3), labelled.read(3))
    assert plain.labels is None
    assert labelled.classes == ("u", "v", "w")
    assert labelled.labels is not None and labelled.labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"hello"])
def test_damaged_numpy_files_are_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / "a.npy")


def test_an_npz_without_images_or_with_too_many(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", p=np.zeros(3))
    np.savez(tmp_path / "b.npz", p=np.zeros((3, 4, 4)), q=np.zeros((3, 4, 4)))
    for name in "ab":
        with pytest.raises(DataError, match="cannot tell"):
            open_source(tmp_path / f"{name}.npz")


def test_the_fingerprint_follows_the_pixels() -> None:
    images = np.zeros((4, 4, 4, 3), np.uint8)
    before = ArraySource(images).fingerprint
    images = images.copy()
    images[2, 1, 1, 1] = 9
    assert ArraySource(images).fingerprint != before
