"""Decoding: formats, depths, channels, reduced scale, and what must be refused with which reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
import skimage.data
import tifffile
from PIL import Image

from imprint.core.errors import BadImage
from imprint.data.decode import decode, decode_pixels, read_header, reduced_size

PICTURE = np.ascontiguousarray(skimage.data.chelsea()[:203, :301])
GREY = np.ascontiguousarray(PICTURE[..., 1])
DEEP = (PICTURE.astype(np.uint32) * 257 - 100 * (PICTURE > 0)).astype(np.uint16)


def saved(image: Any, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray[Any, Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def npy(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


def png16(pixels: np.ndarray[Any, Any]) -> bytes:
    """Write 16-bit RGB, which Pillow cannot."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def by_pillow(data: bytes, mode: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats(kind: str) -> None:
    data = saved(PICTURE, kind)
    assert np.array_equal(decode(data), PICTURE)
    header = read_header(data)
    assert (header.height, header.width) == PICTURE.shape[:2]


def test_webp() -> None:
    assert np.array_equal(decode(saved(PICTURE, "WEBP", lossless=True)), PICTURE)
    data = saved(PICTURE, "WEBP", quality=80)
    assert np.abs(decode(data).astype(int) - by_pillow(data, "RGB")).mean() < 1


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_jpeg_is_what_pillow_reads(options: dict[str, Any]) -> None:
    data = saved(PICTURE, "JPEG", quality=90, **options)
    error = np.abs(decode(data).astype(int) - by_pillow(data, "RGB"))
    assert error.mean() < 0.1 and error.max() <= 4  # two builds of one library
    grey = decode(data, channels=1)
    assert grey.shape == (203, 301, 1) and np.abs(grey[..., 0].astype(int) - by_pillow(data, "L")).mean() < 1


def test_grey_and_colour() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = saved(GREY, kind, **({"lossless": True} if kind == "WEBP" else {}))
        one, three = decode(data, channels=1), decode(data, channels=3)
        assert one.shape == (203, 301, 1) and three.shape == (203, 301, 3)
        assert np.abs(one.astype(int) - by_pillow(data, "L")[..., None]).max() <= 1
        assert (
            np.array_equal(three, np.repeat(three[..., :1], 3, axis=2))
            and np.abs(three[..., :1].astype(int) - one).max() <= 1
        )
    luma = decode(saved(PICTURE, "PNG"), channels=1)[..., 0]
    assert np.abs(luma.astype(int) - np.asarray(Image.fromarray(PICTURE).convert("L"))).max() <= 1


def test_alpha_is_dropped() -> None:
    alpha = np.dstack([PICTURE, GREY])
    for data in (saved(alpha, "PNG"), saved(alpha, "WEBP", lossless=True, exact=True), saved(alpha, "TIFF")):
        assert np.array_equal(decode(data), PICTURE)
    assert np.array_equal(decode(saved(alpha[..., [0, 3]], "PNG"), channels=1)[..., 0], PICTURE[..., 0])
    assert np.array_equal(decode(saved(alpha, "PNG"), channels=4), alpha)


def test_palettes_bits_and_first_frames() -> None:
    palette = Image.fromarray(PICTURE).convert("P")
    bilevel = Image.fromarray(GREY).convert("1")
    for data in (saved(palette, "PNG"), saved(palette, "GIF"), saved(palette, "TIFF"), saved(bilevel, "PNG")):
        assert np.array_equal(decode(data), by_pillow(data, "RGB"))
    frames = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
    for kind in ("GIF", "WEBP"):
        data = saved(
            frames[0], kind, save_all=True, append_images=frames[1:], **({} if kind == "GIF" else {"lossless": True})
        )
        assert np.array_equal(decode(data), by_pillow(data, "RGB"))


def test_cmyk_jpeg() -> None:
    data = saved(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data).astype(int) - by_pillow(data, "RGB")).mean() < 2


def test_exif_orientation_is_ignored_as_by_other_loaders() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (saved(PICTURE, "JPEG", exif=exif), saved(PICTURE, "PNG", exif=exif)):
        assert decode(data).shape == PICTURE.shape


def test_sixteen_bits() -> None:
    assert np.array_equal(decode(png16(DEEP)), DEEP) and decode(png16(DEEP)).dtype == np.uint16
    assert np.array_equal(decode(tiff(DEEP, photometric="rgb")), DEEP)
    assert np.array_equal(decode(npy(DEEP)), DEEP)
    grey = saved(DEEP[..., 0], "PNG")
    assert np.array_equal(decode(grey, channels=1)[..., 0], DEEP[..., 0])
    assert np.array_equal(decode(npy(DEEP.astype(">u2"))), DEEP), "other byte order"


@pytest.mark.parametrize("channels", [2, 5, 7])
def test_many_channels(channels: int) -> None:
    stack = np.random.default_rng(0).integers(0, 60_000, (20, 30, channels), dtype=np.uint16)
    assert np.array_equal(decode(npy(stack), channels=channels), stack)
    assert np.array_equal(
        decode(tiff(stack, photometric="minisblack", planarconfig="contig"), channels=channels), stack
    )
    separate = tiff(np.moveaxis(stack, -1, 0), photometric="minisblack", planarconfig="separate")
    assert np.array_equal(decode(separate, channels=channels), stack)
    with pytest.raises(BadImage, match="unsupported.*channels"):
        decode(npy(stack[..., :2]), channels=channels + 1)


def test_compressed_tiff() -> None:
    assert np.array_equal(decode(saved(PICTURE, "TIFF", compression="tiff_lzw")), PICTURE)
    assert np.array_equal(decode(saved(PICTURE, "TIFF", compression="tiff_adobe_deflate")), PICTURE)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_reduced_decoding(factor: int, channels: int) -> None:
    data = simplejpeg.encode_jpeg(PICTURE, quality=95)
    header = read_header(data)
    small = decode_pixels(data, header, channels, factor)
    rows, columns = reduced_size(header, factor)
    assert small.shape == (rows, columns, channels)
    full = decode_pixels(data, header, channels).astype(float)
    inner = full[: 203 // factor * factor, : 301 // factor * factor]
    box = inner.reshape(203 // factor, factor, 301 // factor, factor, channels).mean((1, 3))
    error = np.abs(small[: box.shape[0], : box.shape[1]] - box)
    assert error.mean() < 2.5 and np.abs((small[: box.shape[0], : box.shape[1]] - box).mean()) < 0.3


def test_min_side_bounds_the_reduction() -> None:
    data = simplejpeg.encode_jpeg(PICTURE, quality=90)
    sizes = {side: decode(data, min_side=side).shape[:2] for side in (203, 102, 101, 50, 25, 1)}
    assert sizes == {203: (203, 301), 102: (203, 301), 101: (102, 151), 50: (51, 76), 25: (26, 38), 1: (26, 38)}
    assert decode(saved(PICTURE, "PNG"), min_side=10).shape == PICTURE.shape


def test_a_buffer_is_used_when_it_is_large_enough() -> None:
    data = simplejpeg.encode_jpeg(PICTURE)
    header, buffer = read_header(data), np.zeros(PICTURE.size, np.uint8)
    assert np.shares_memory(decode_pixels(data, header, 3, buffer=buffer), buffer)
    assert not np.shares_memory(decode_pixels(data, header, 3, buffer=buffer[:100]), buffer)


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    assert caught.value.detail
    return caught.value.reason


def test_empty_and_foreign_files() -> None:
    assert reason(b"") == "empty"
    assert reason(b"just some text, no picture at all") == "not-an-image"
    assert reason(bytes(1000)) == "not-an-image"
    assert reason(b"PK\x03\x04" + bytes(100)) == "not-an-image"


@pytest.mark.parametrize("share", [0.98, 0.5, 0.1])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated_files(kind: str, share: float) -> None:
    data = saved(PICTURE, kind)
    assert reason(data[: int(len(data) * share)]) in ("truncated", "corrupt")


def test_truncated_jpeg_and_png_say_so() -> None:
    for kind in ("JPEG", "PNG"):
        data = saved(PICTURE, kind)
        assert reason(data[: len(data) // 2]) == "truncated"
        assert reason(data[:24]) == "truncated"
    jpeg = saved(PICTURE, "JPEG")
    for factor in (1, 2, 4, 8):
        with pytest.raises(BadImage, match="truncated"):
            decode_pixels(jpeg[: len(jpeg) // 2], read_header(jpeg), 3, factor)
    assert reason(npy(PICTURE)[:-10]) == "truncated"
    assert reason(tiff(PICTURE, photometric="rgb")[:-500]) == "truncated"


def test_damaged_files() -> None:
    png = bytearray(saved(PICTURE, "PNG"))
    png[len(png) // 2] ^= 0xFF
    assert reason(bytes(png)) == "corrupt"
    jpeg = bytearray(saved(PICTURE, "JPEG"))
    start = jpeg.index(b"\xff\xda") + 20
    jpeg[start : start + 1500] = bytes(range(250)) * 6
    try:
        decode(bytes(jpeg))  # what every reader opens without a complaint cannot be told from a picture
    except BadImage as error:
        assert error.reason in ("corrupt", "truncated")


def test_what_every_reader_forgives_is_forgiven() -> None:
    data = saved(PICTURE, "JPEG")
    noisy = data[:-2] + b"\x12\x34\x56" * 7 + data[-2:]
    assert np.array_equal(decode(noisy), decode(data))
    assert np.array_equal(decode(data + b"trailing"), decode(data))


def test_gigantic_images_are_refused_by_their_header() -> None:
    assert reason(saved(PICTURE, "PNG"), max_pixels=1000) == "too-large"
    png = bytearray(saved(GREY, "PNG"))
    png[16:24] = struct.pack(">II", 60_000, 60_000)  # a bomb: the pixels are not there
    assert reason(bytes(png)) == "too-large"
    jpeg = bytearray(saved(PICTURE, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    assert reason(bytes(jpeg)) == "too-large"
    gif = bytearray(saved(PICTURE, "GIF"))
    gif[6:10] = struct.pack("<HH", 65_000, 65_000)
    assert reason(bytes(gif)) == "too-large"
    assert reason(npy(np.zeros((1, 1), np.uint8)), max_pixels=0) == "too-large"


def test_unsupported_pixels() -> None:
    assert reason(npy(PICTURE.astype(np.float32))) == "unsupported"
    assert reason(npy(np.zeros((2, 3, 4, 5), np.uint8))) == "unsupported"
    assert reason(tiff(np.zeros((8, 8), np.float32)), channels=1) == "unsupported"
    assert reason(npy(np.zeros((0, 5, 3), np.uint8))) == "corrupt"


def test_nothing_is_executed_from_an_array_file() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([[object()]], dtype=object), allow_pickle=True)
    assert reason(stream.getvalue()) in ("corrupt", "unsupported", "truncated")


def test_random_bytes_behind_a_magic_number_never_crash() -> None:
    rng = np.random.default_rng(0)
    magic = [
        b"\xff\xd8\xff\xe0",
        b"\x89PNG\r\n\x1a\n",
        b"II*\0",
        b"MM\0*",
        b"GIF89a",
        b"BM",
        b"RIFF\0\0\0\0WEBP",
        b"\x93NUMPY\x01\0",
    ]
    for start in magic:
        for size in (0, 5, 40, 400):
            with pytest.raises(BadImage):
                decode(start + rng.bytes(size))
