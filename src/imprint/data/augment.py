"""The CPU view engine: all views of an image from its bytes in one go, without a copy in between.

The header is parsed first; crops are resolved from the drawn parameters; a JPEG is decoded at a reduced DCT scale when
every crop allows it; crop, resize, colour, blur and flip run in compiled kernels from the decoded buffer into the
batch. Everything heavy runs without the GIL, and all state is per thread, so threads share one engine.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from imprint.core.errors import BadImage, ConfigError
from imprint.data import kernels, simd
from imprint.data.boxes import Boxes, boxes, reduced
from imprint.data.decode import MAX_PIXELS, decode_pixels, read_header
from imprint.data.draws import Draws, draw
from imprint.data.views import CenterCrop, Crop, View
from imprint.ops.rand_augment import operated

REDUCTION_MARGIN: Final = 1.0
"""A JPEG is decoded at 1/f when every crop keeps at least this many decoded pixels per output pixel, per axis."""


@dataclass(frozen=True)
class _Plan:
    """What the kernel needs to know about one view."""

    name: str
    crop: Crop | CenterCrop
    size: int
    cubic: bool
    radii: npt.NDArray[np.int64]
    thresholds: npt.NDArray[np.int64]
    margin: int
    fills: list[Tensor]


class ViewEngine:
    """Draws and renders views.

    Args:
        views: what to make; names must differ.
        channels: C of every image; see `decode.decode` for how others are converted.
        dtype: uint8 or uint16, of the views. Images of the other depth are rescaled (65535 to 255 and back).
        max_pixels: images with more pixels are refused as `too-large`.

    Raises:
        ConfigError: for views that cannot be rendered.
    """

    def __init__(
        self, views: Sequence[View], channels: int = 3, dtype: npt.DTypeLike = np.uint8, *, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.views, self.channels, self.dtype = tuple(views), channels, np.dtype(dtype)
        if self.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise ConfigError(f"views are uint8 or uint16, not {self.dtype}.")
        self.max_pixels = max_pixels
        self._bound = int(np.iinfo(self.dtype).max)
        self._plans = [_plan(view, self._bound, channels) for view in self.views]
        self._local = threading.local()

    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """Return (V, C, H, W) by view name."""
        return {v.name: (v.count, self.channels, v.crop.size, v.crop.size) for v in self.views}

    def draw(self, seed: int, epoch: int, index_B: npt.ArrayLike) -> Draws:
        """Draw all parameters of the samples `index_B`; see `draws`."""
        return draw(self.views, seed, epoch, index_B, channels=self.channels)

    def render(
        self,
        image: bytes | npt.NDArray[Any],
        draws: Draws,
        b: int,
        out: Mapping[str, npt.NDArray[Any]],
        row: int | None = None,
    ) -> None:
        """Make all views of one image.

        Args:
            image: encoded bytes, or pixels (H, W) or (H, W, C), uint8 or uint16.
            draws: from `draw`.
            b: the image's row in `draws`.
            out: C-contiguous (V, B, C, H, W) by view name; `out[name][:, row]` is written.
            row: its row in `out`; None is `b` (frames of a clip share the draws of their sample).

        Raises:
            BadImage: when the image cannot be used; nothing else was written then than that row.
        """
        if isinstance(image, np.ndarray):
            pixels = self._of_array(image)
            height, width = pixels.shape[:2]
            found = [boxes(plan.crop, draws[plan.name], b, height, width) for plan in self._plans]
        else:
            pixels, found = self._of_bytes(image, draws, b)
        if pixels.dtype != self.dtype:
            pixels = _rescaled(pixels, self.dtype)
        flat = pixels.reshape(-1)
        if flat.flags.writeable:  # one compiled version serves all if everything looks read-only
            flat = flat.view()
            flat.flags.writeable = False
        width = pixels.shape[1]
        for plan, boxes_V8 in zip(self._plans, found, strict=True):
            place, drawn = b if row is None else row, draws[plan.name]
            self._render(plan, flat, width, boxes_V8, drawn.look_BVP[b], place, out[plan.name])
            for copy, (operations_BN, strengths_BN) in drawn.operations.items():
                if (operations_BN[b] >= 0).any():
                    operate_(out[plan.name][copy, place], operations_BN[b], strengths_BN[b], plan.fills[copy])

    def _render(
        self, plan: _Plan, flat: Any, width: int, boxes_V8: Boxes, look_VP: Any, b: int, out: npt.NDArray[Any]
    ) -> None:
        _, batch, channels, size, _ = out.shape
        widest = int((boxes_V8[:, 7] - boxes_V8[:, 6]).max())
        need = kernels.scratch_size(size, channels, widest, max(simd.LANES, plan.margin))
        kernels.render(
            flat,
            width,
            channels,
            boxes_V8,
            look_VP,
            size,
            plan.cubic,
            plan.radii,
            plan.thresholds,
            self._bound,
            out.reshape(-1),
            b * channels * size * size,
            batch * channels * size * size,
            self._scratch("work", need, self.dtype),
        )

    def _of_bytes(self, data: bytes, draws: Draws, b: int) -> tuple[npt.NDArray[Any], list[Boxes]]:
        header = read_header(data, max_pixels=self.max_pixels)
        found = [boxes(plan.crop, draws[plan.name], b, header.height, header.width) for plan in self._plans]
        factor = 1
        if header.kind == "jpeg":
            least = min(float(min(boxes_V8[:, 1].min(), boxes_V8[:, 5].min())) for boxes_V8 in found)
            while factor < 8 and least >= 2 * factor * REDUCTION_MARGIN:
                factor *= 2
        rows, columns = -(-header.height // factor), -(-header.width // factor)
        buffer = self._scratch("pixels", rows * columns * self.channels, np.dtype(np.uint8))
        pixels = decode_pixels(data, header, self.channels, factor, buffer)
        if pixels.shape != (rows, columns, self.channels):  # the kernels trust the boxes, which trust the header
            raise BadImage("corrupt", f"decoded to {pixels.shape[:2]} pixels where its header says {(rows, columns)}")
        if factor > 1:
            found = [reduced(boxes_V8, factor, rows, columns) for boxes_V8 in found]
        return pixels, found

    def _of_array(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        pixels = image[..., None] if image.ndim == 2 else image
        if pixels.ndim != 3 or pixels.shape[2] != self.channels or 0 in pixels.shape:
            raise BadImage("unsupported", f"an array of shape {image.shape}; (H, W, {self.channels}) was expected")
        if pixels.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            raise BadImage("unsupported", f"pixels of type {pixels.dtype}; uint8 or uint16 were expected")
        return np.ascontiguousarray(pixels)

    def _scratch(self, name: str, size: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return this thread's work memory of a kind, at least `size` elements; it grows and is never shared."""
        array: npt.NDArray[Any] | None = getattr(self._local, name, None)
        if array is None or array.size < size:
            array = np.empty(size + size // 4, dtype=dtype)
            setattr(self._local, name, array)
        return array


def _plan(view: View, bound: int, channels: int) -> _Plan:
    crop = view.crop
    if crop.size < 1:
        raise ConfigError(f"view '{view.name}': a side of {crop.size} pixels is impossible.")
    if isinstance(crop, CenterCrop) and crop.resize < crop.size:
        raise ConfigError(
            f"view '{view.name}': the centre crop of {crop.size} pixels does not fit an image resized to "
            f"{crop.resize}; set resize to at least the size."
        )
    looks = [view.look_of(copy) for copy in range(view.count)]
    # Reflection at the border needs more pixels than the radius; the kernel's side is odd.
    radii = [min(math.ceil(k.blur_kernel * crop.size) // 2, crop.size - 1) if k.blur > 0 else 0 for k in looks]
    thresholds = [k.solarise_threshold * (bound // 255) for k in looks]
    return _Plan(
        view.name,
        crop,
        crop.size,
        crop.interpolation == "bicubic",
        np.array(radii, dtype=np.int64),
        np.array(thresholds, dtype=np.int64),
        max(radii),
        [fill_colour(look.operations.fill, channels) if look.operations else torch.empty(0) for look in looks],
    )


def fill_colour(colour: Sequence[float], channels: int) -> Tensor:
    """Return a colour in [0, 1] as float32 (C) in whole 8-bit steps; their average for another number of channels."""
    values = colour if len(colour) == channels else (sum(colour) / len(colour),) * channels
    return torch.tensor([min(255.0, float(round(255 * value))) for value in values])


def operate_(
    image_CHW: npt.NDArray[Any],
    operations_N: npt.NDArray[np.int64],
    strengths_N: npt.NDArray[np.float32],
    fill_C: Tensor,
) -> None:
    """Apply RandAugment's operations to one image in place; 16 bits are worked on as the 8 they are defined for."""
    deep = image_CHW.dtype == np.uint16
    image = torch.from_numpy((image_CHW // 257).astype(np.uint8) if deep else image_CHW)
    changed = operated(image, operations_N.tolist(), strengths_N.tolist(), fill_C).numpy()
    image_CHW[:] = changed.astype(np.uint16) * np.uint16(257) if deep else changed


def _rescaled(pixels: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Convert between 8 and 16 bits; 255 and 65535 correspond."""
    if dtype == np.uint16:
        return pixels.astype(np.uint16) * np.uint16(257)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
