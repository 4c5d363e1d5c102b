"""Channels and depth from headers."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from imprint.core.errors import BadImage
from imprint.data.headers import layout_of


def pil(mode: str, form: str) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (9, 7)).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mode", "form", "channels", "bits"),
    [
        ("L", "png", 1, 8),
        ("LA", "png", 1, 8),
        ("RGB", "png", 3, 8),
        ("RGBA", "png", 3, 8),
        ("P", "png", 3, 8),
        ("I;16", "png", 1, 16),
        ("L", "jpeg", 1, 8),
        ("RGB", "jpeg", 3, 8),
        ("CMYK", "jpeg", 3, 8),
        ("RGB", "webp", 3, 8),
        ("RGB", "bmp", 3, 8),
        ("P", "gif", 3, 8),
        ("P", "tiff", 3, 8),
    ],
)
def test_formats_of_photographs(mode: str, form: str, channels: int, bits: int) -> None:
    layout = layout_of(pil(mode, form))
    assert (layout.channels, layout.dtype.itemsize * 8) == (channels, bits)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_tiff_and_npy_hold_any_number_of_channels(dtype: type, channels: int) -> None:
    image = np.zeros((32, 20, channels), dtype)
    tiff, npy = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(tiff, image, photometric="minisblack", planarconfig="contig" if channels > 1 else None)
    np.save(npy, image)
    for sample in (tiff.getvalue(), npy.getvalue(), image):
        assert layout_of(sample) == (channels, np.dtype(dtype))
    flat = io.BytesIO()
    np.save(flat, image[:, :, 0])
    assert layout_of(flat.getvalue()).channels == layout_of(image[:, :, 0]).channels == 1


@pytest.mark.parametrize("sample", [b"", b"hello", b"\x93NUMPY\x01\x00\xff\xff", b"II*\0\xff\xff\xff\xff"])
def test_what_has_no_header(sample: bytes) -> None:
    with pytest.raises(BadImage):
        layout_of(sample)
