"""Channels and bit depth of a sample from its first bytes, without decoding it."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # grey, colour, palette, grey + alpha, colour + alpha; alpha is dropped
_PIL_CHANNELS = {"1": 1, "L": 1, "LA": 1, "I;16": 1, "I": 1, "F": 1}


class Layout(NamedTuple):
    """What one pixel is: the number of channels, and uint8 or uint16."""

    channels: int
    dtype: np.dtype[Any]


def layout_of(sample: bytes | npt.NDArray[Any]) -> Layout:
    """Read the layout of an encoded image or an array (H, W, C).

    Raises:
        BadImage: when the header cannot be read.
    """
    if isinstance(sample, np.ndarray):
        return Layout(sample.shape[2] if sample.ndim == 3 else 1, _depth(sample.dtype.itemsize * 8))
    if sample[:8] == _PNG and len(sample) >= 26:
        return Layout(_PNG_CHANNELS.get(sample[25], 3), _depth(sample[24]))
    if sample[:6] == b"\x93NUMPY":
        return _npy(sample)
    if sample[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(sample)
    return _pil(sample)


def _depth(bits: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if bits > 8 else np.uint8)


def _npy(sample: bytes) -> Layout:
    try:
        stream = io.BytesIO(sample)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except ValueError as error:
        raise BadImage("corrupt", f"npy header: {error}") from error
    return Layout(int(shape[2]) if len(shape) == 3 else 1, _depth(dtype.itemsize * 8))


def _tiff(sample: bytes) -> Layout:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(sample)) as file:
            page = file.pages.first
            channels, bits, colour = int(page.samplesperpixel), int(page.bitspersample), int(page.photometric)
    except Exception as error:  # a damaged directory surfaces as almost any type
        raise BadImage("corrupt", f"tiff header: {error}") from error
    palette = 3
    return Layout(3 if colour == palette else channels, _depth(bits))


def _pil(sample: bytes) -> Layout:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(sample)) as image:
            mode = image.mode
    except Exception as error:  # Pillow's plugins raise many types on damaged headers
        raise BadImage("not-an-image", str(error)) from error
    return Layout(_PIL_CHANNELS.get(mode, 3), _depth(16 if mode.startswith("I") else 8))
