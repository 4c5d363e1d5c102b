"""What the network sees, as data. A View says how crops are cut and what they look like; engines draw and render it.

The specification names no device and no library: the CPU engine (`augment`) and a batched device engine read the same
value and draw the same parameters from the same keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from imprint.core.errors import ConfigError

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Random resized crop (GoogLeNet): area share U(scale), log-aspect U(log ratio), ten tries, then the centre.

    Attributes:
        size: output height and width in pixels.
        scale: bounds of the crop's share of the image area; (1, 1) with `ratio=None` is a plain resize of the whole.
        ratio: bounds of width/height of the crop; None keeps the aspect of the image.
        interpolation: resampling filter; always antialiased.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] | None = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """Resize the shorter side to `resize`, then cut the centre `size` x `size`: the plain evaluation view."""

    size: int
    resize: int
    interpolation: Interpolation = "bicubic"


@dataclass(frozen=True, kw_only=True)
class Operations:
    """RandAugment (arXiv 1909.13719): random operations after one another on 8-bit pixels (`ops.rand_augment`).

    The defaults are timm's `rand-m9-mstd0.5-inc1`, which DeiT and MAE's fine-tuning use.

    Attributes:
        magnitude: mean of the magnitude, in [0, 10].
        spread: standard deviation of the magnitude, which is clipped to [0, 10].
        number: operations after one another.
        probability: that each of them is applied.
        fill: colour of what comes in from outside of the image, in [0, 1] per channel; the average where the image has
            another number of channels.
    """

    magnitude: float = 9.0
    spread: float = 0.5
    number: int = 2
    probability: float = 0.5
    fill: tuple[float, ...] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.0 <= self.magnitude <= 10.0 or self.spread < 0.0:
            raise ConfigError(
                f"RandAugment: magnitude {self.magnitude} must lie in [0, 10] (the scale of timm and of the paper's "
                f"public code divided by 3, where it goes to 30) and its spread {self.spread} be at least 0."
            )
        if self.number < 1 or not 0.0 <= self.probability <= 1.0 or not self.fill:
            raise ConfigError(
                f"RandAugment: number {self.number} must be at least 1, probability {self.probability} lie in [0, 1], "
                "and fill name a colour."
            )


@dataclass(frozen=True, kw_only=True)
class Look:
    """Augmentation of a crop, applied in this order: flip, colour jitter, grey, blur, solarise, RandAugment.

    Semantics are torchvision's: the four jitter operations come in a drawn order, factors are uniform in
    [max(0, 1 - x), 1 + x], hue shift is uniform in [-hue, hue] of a turn in HSV, results are clamped to the range.
    Saturation, hue and grey need three channels and are skipped for any other number.
    Probabilities are per view and lie in [0, 1]; everything is off by default.

    Attributes:
        flip: probability of a horizontal flip.
        brightness: jitter strength.
        contrast: jitter strength.
        saturation: jitter strength.
        hue: jitter strength, at most 0.5.
        jitter: probability that the four are applied at all.
        grey: probability of three equal channels (ITU-R 601 luma).
        blur: probability of a Gaussian blur.
        blur_sigma: bounds of its standard deviation in pixels.
        blur_kernel: its kernel's side as a share of the view's side, rounded up to an odd number of pixels.
        solarise: probability of inverting the values at or above `solarise_threshold`.
        solarise_threshold: in 8-bit units (128 of 255), whatever the bit depth.
        operations: RandAugment, or None.
    """

    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: float = 0.1
    solarise: float = 0.0
    solarise_threshold: int = 128
    operations: Operations | None = None


PLAIN = Look()


@dataclass(frozen=True, kw_only=True)
class View:
    """`count` crops of each image under one name; `look` is shared, or `looks` gives one per crop (BYOL's T and T').

    The loader delivers them as `Batch.views[name]`, uint8 of shape (count, B, C, size, size).
    """

    name: str
    count: int = 1
    crop: Crop | CenterCrop
    look: Look = PLAIN
    looks: tuple[Look, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.count < 1:
            raise ConfigError(f"view '{self.name}': count must be at least 1, got {self.count}.")
        if self.looks and len(self.looks) != self.count:
            raise ConfigError(f"view '{self.name}': {len(self.looks)} looks for {self.count} crops; give one per crop.")

    def look_of(self, copy: int) -> Look:
        """Return the look of crop number `copy`."""
        return self.looks[copy] if self.looks else self.look

    def resized(self, size: int) -> View:
        """Return the view at another output size; an evaluation view keeps its resize-to-crop ratio."""
        if isinstance(self.crop, CenterCrop):
            resize = round(size * self.crop.resize / self.crop.size)
            crop: Crop | CenterCrop = replace(self.crop, size=size, resize=resize)
        else:
            crop = replace(self.crop, size=size)
        return replace(self, crop=crop)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """`count` crops of `frames` frames of a video under one name, `stride` frames apart.

    The loader delivers them as `Batch.clips[name]`, uint8 of shape (count, B, frames, C, size, size). All clips of a
    sample begin at the same frame.

    Attributes:
        name: distinct among the clips of a method.
        frames: T.
        stride: frames from one to the next.
        gaps: bounds (both included) of the number of frames from each one to the next, drawn anew for each sample and
            epoch, as is where in the span the first one lies; empty keeps `stride`.
        motion: draw runs of frames in proportion to the motion in them, instead of each once an epoch.
        count: crops of the same frames.
        crop: how a frame is cut.
        look: photometric augmentation.
        steady: one crop and one look for all frames of a clip (motion stays what it was); otherwise each frame draws
            its own.
    """

    name: str
    frames: int
    stride: int = 1
    gaps: tuple[tuple[int, int], ...] = ()
    motion: bool = False
    count: int = 1
    crop: Crop | CenterCrop
    look: Look = PLAIN
    steady: bool = True

    def __post_init__(self) -> None:
        """Check the counts."""
        if min(self.frames, self.stride, self.count) < 1:
            raise ConfigError(f"clip '{self.name}': frames, stride and count must be at least 1.")
        if self.gaps and (len(self.gaps) != self.frames - 1 or any(not 1 <= low <= high for low, high in self.gaps)):
            raise ConfigError(
                f"clip '{self.name}': {self.frames} frames need {self.frames - 1} gaps (lowest, highest) with "
                f"1 <= lowest <= highest; got {self.gaps}."
            )

    @property
    def span(self) -> int:
        """Number of consecutive frames that it is taken from."""
        return 1 + (sum(high for _, high in self.gaps) if self.gaps else (self.frames - 1) * self.stride)

    def view(self, frame: int = 0) -> View:
        """Return the view that cuts a frame of it."""
        name = self.name if self.steady else f"{self.name}/{frame}"
        return View(name=name, count=self.count, crop=self.crop, look=self.look)
