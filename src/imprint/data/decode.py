"""From encoded bytes to pixels: the header first, then only as much decoding as is needed.

What is decoded as other readers do (torchvision's default loader, Pillow): EXIF orientation is ignored, alpha is
dropped and not composited, animations give their first frame, 601 luma makes grey of colour. What is stricter: a
truncated or damaged file is an error, never a half-grey picture.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from imprint.core.errors import BadImage

Pixels = npt.NDArray[Any]
Kind = Literal["jpeg", "png", "tiff", "npy", "other"]

MAX_PIXELS: Final = 178_956_970
"""Default limit on height x width, checked before anything is allocated: 512 MB of RGB, Pillow's hard limit."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OPENCV_KINDS: Final = ("PNG", "WEBP", "BMP", "DIB")
# libjpeg's warnings that leave the picture whole, as far as any reader can tell.
_HARMLESS: Final = ("extraneous bytes", "Unknown Adobe", "Warning: unknown JFIF", "Inconsistent progression")


@dataclass(frozen=True)
class Header:
    """What is known before decoding.

    Attributes:
        kind: how it will be read.
        height: pixels.
        width: pixels.
        colour: colour space or mode as the reader names it.
    """

    kind: Kind
    height: int
    width: int
    colour: str = ""


def read_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Read format and size without decoding.

    Raises:
        BadImage: `empty`, `not-an-image`, `truncated`, `corrupt`, or `too-large` for more than `max_pixels` pixels.
    """
    if not data:
        raise BadImage("empty", "0 bytes")
    if data[:2] == b"\xff\xd8":
        header = _jpeg_header(data)
    elif data[:8] == _PNG:
        header = _png_header(data)
    elif data[:6] == b"\x93NUMPY":
        header = _npy_header(data)
    elif data[:4] in _TIFF:
        header = _tiff_header(data)
    else:
        header = _other_header(data)
    if header.height < 1 or header.width < 1:
        raise BadImage("corrupt", f"the header says {header.width} x {header.height} pixels")
    if header.height * header.width > max_pixels:
        raise BadImage("too-large", f"{header.width} x {header.height} pixels exceed the limit of {max_pixels}")
    return header


def decode(
    data: bytes, *, channels: int = 3, min_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[Any]:
    """Decode an image of any supported format (JPEG, PNG, WebP, BMP, GIF, TIFF, npy, and what Pillow opens).

    Args:
        data: the encoded file.
        channels: channels wanted. Grey becomes RGB by repetition, RGB becomes grey as 601 luma, alpha is dropped;
            any other mismatch is an error.
        min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as both sides stay at least this long.
        max_pixels: limit on height x width.

    Returns:
        (H, W, channels), uint8, or uint16 for sources with more than 8 bits.

    Raises:
        BadImage: with the reason.
    """
    header = read_header(data, max_pixels=max_pixels)
    factor = 1
    while min_side is not None and factor < 8 and min(header.height, header.width) >= 2 * factor * min_side:
        factor *= 2
    return decode_pixels(data, header, channels, factor)


def decode_pixels(
    data: bytes, header: Header, channels: int, factor: int = 1, buffer: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[Any]:
    """Decode an image whose header has been read; a JPEG at 1/`factor` (1, 2, 4, 8) of its size, rounded up.

    Args:
        data: the encoded file.
        header: from `read_header`.
        channels: see `decode`.
        factor: reduction, used for JPEG only.
        buffer: memory that the result of a JPEG may lie in; used when it is large enough.

    Returns:
        See `decode`.

    Raises:
        BadImage: see `decode`.
    """
    if header.kind == "jpeg" and header.colour not in ("CMYK", "YCCK") and channels in (1, 3):
        return _jpeg(data, header, channels, factor, buffer)
    if header.kind == "npy":
        pixels = _npy(data)
    elif header.kind == "tiff":
        pixels = _tiff(data)
    elif header.kind == "png" or header.colour in _OPENCV_KINDS:
        pixels = _opencv(data, channels)
    else:
        pixels = _pillow(data)
    return np.ascontiguousarray(_with_channels(_checked(pixels), channels, alpha=header.kind != "npy"))


def reduced_size(header: Header, factor: int) -> tuple[int, int]:
    """Return height and width of a JPEG decoded at 1/`factor`."""
    return -(-header.height // factor), -(-header.width // factor)


def _jpeg_header(data: bytes) -> Header:
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:  # KeyError: the colour space of a header that was cut off
        if b"\xff\xda" not in data:  # no scan: the file ends inside its header
            raise BadImage("truncated", "the JPEG ends before its first scan") from error
        return _other_header(data)  # four-component or otherwise rare; Pillow decides
    return Header("jpeg", height, width, colour)


def _png_header(data: bytes) -> Header:
    if len(data) < 33:
        raise BadImage("truncated", f"a PNG of {len(data)} bytes")
    at, size = 8, len(data)
    while data[at + 4 : at + 8] != b"IEND":
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at + 12 > size:
            raise BadImage("truncated", f"the PNG has no end; {size} bytes are there")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return Header("png", height, width)


def _npy_header(data: bytes) -> Header:
    try:
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise BadImage("corrupt", f"npy header: {error}") from error
    if len(shape) not in (2, 3):
        raise BadImage("unsupported", f"an npy image has shape (H, W) or (H, W, C), this one {shape}")
    if stream.tell() + int(np.prod(shape)) * dtype.itemsize > len(data):
        raise BadImage("truncated", "the npy file is shorter than its shape says")
    return Header("npy", shape[0], shape[1])


def _tiff_header(data: bytes) -> Header:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            return Header("tiff", int(page.imagelength), int(page.imagewidth))
    except Exception as error:  # a damaged directory surfaces as almost any type
        raise BadImage("corrupt", f"TIFF directory: {error}") from error


def _other_header(data: bytes) -> Header:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            colour = (
                image.format
                if image.format in _OPENCV_KINDS and not getattr(image, "is_animated", False)
                else image.mode
            )
            return Header("other", image.height, image.width, colour or "")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too-large", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadImage("not-an-image", f"no known format begins with {data[:8]!r}") from error
    except Exception as error:  # Pillow's plugins raise many types on damaged headers
        raise BadImage("corrupt", str(error)) from error


def _jpeg(
    data: bytes, header: Header, channels: int, factor: int, buffer: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint8]:
    height, width = reduced_size(header, factor)
    if buffer is not None and buffer.size < height * width * channels:
        buffer = None
    options: dict[str, Any] = {"colorspace": "RGB" if channels == 3 else "GRAY", "buffer": buffer}
    if factor > 1:
        options |= {"min_height": height, "min_width": width}
    try:
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        message = str(error)
        if not any(harmless in message for harmless in _HARMLESS):
            raise BadImage("truncated" if "Premature end" in message else "corrupt", message) from error
        try:
            pixels = simplejpeg.decode_jpeg(data, strict=False, **options)
        except ValueError as second:
            raise BadImage("corrupt", str(second)) from second
    return pixels


def _opencv(data: bytes, channels: int) -> Pixels:
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    flags |= {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}.get(channels, cv2.IMREAD_UNCHANGED)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise BadImage("corrupt", str(error)) from error
    if pixels is None:
        raise BadImage("corrupt", "the pixel data are damaged")
    if channels not in (1, 3) and pixels.ndim == 3 and pixels.shape[2] in (3, 4):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return pixels


def _pillow(data: bytes) -> Pixels:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("L", "RGB", "I;16"):
                return np.array(image)
            if image.mode in ("1", "LA", "La"):
                return np.array(image.convert("L"))
            if image.mode.startswith(("I", "F")):
                raise BadImage("unsupported", f"pixels of mode '{image.mode}'; use 8 or 16 bits per channel")
            return np.array(image.convert("RGB"))
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        raise BadImage("truncated" if "truncated" in str(error).lower() else "corrupt", str(error)) from error


def _tiff(data: bytes) -> Pixels:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
                return _pillow(data)
            ends = [a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if ends and max(ends) > len(data):
                raise BadImage("truncated", f"the TIFF refers to byte {max(ends)} and has {len(data)}")
            pixels = page.asarray()
            return np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels
    except BadImage:
        raise
    except Exception as error:  # also compressions that tifffile leaves to another package
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        other: Any = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
        if other is None:
            raise BadImage("corrupt", f"TIFF: {error}") from error
        if other.ndim == 3 and other.shape[2] in (3, 4):
            other = other[..., (2, 1, 0, 3)[: other.shape[2]]]
        return np.asarray(other)


def _npy(data: bytes) -> Pixels:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadImage("corrupt", f"npy: {error}") from error


def _checked(pixels: Pixels) -> Pixels:
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        return pixels[..., None] if pixels.ndim == 2 else pixels
    raise BadImage("unsupported", f"pixels of type {pixels.dtype}; store uint8 or uint16")


def _with_channels(pixels: Pixels, channels: int, *, alpha: bool) -> Pixels:
    """Make (H, W, channels) of (H, W, C): repeat grey, take luma, drop the last of 2 or 4 where that is `alpha`."""
    if pixels.shape[2] == channels:
        return pixels
    found = pixels.shape[2]
    if alpha and found in (2, 4) and channels in (1, 3):
        pixels = pixels[..., :-1]
    have = pixels.shape[2]
    if have == channels:
        return pixels
    if (have, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if (have, channels) == (3, 1):
        grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        return np.rint(grey).astype(pixels.dtype)[..., None]
    raise BadImage("unsupported", f"the image has {found} channels, {channels} were asked for")
