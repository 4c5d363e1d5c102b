"""The views of the papers, as functions of the image size. Names are `global` and `local`; a look is data.

Blur follows the network's input: papers state it for 224 pixels, where a tenth of the side is 23 pixels. For images of
32 pixels the papers that ran on CIFAR left blur out and halved the colour jitter; `small=True`, the default up to
`SMALL` pixels, does both.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from imprint.data.views import PLAIN, CenterCrop, Crop, Interpolation, Look, View

SMALL: Final = 64
"""Up to this side in pixels, defaults are those for small images: half the colour jitter, no blur."""


def simclr_views(
    image_size: int = 224,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    strength: float | None = None,
    blur: float | None = None,
) -> tuple[View, ...]:
    """Two views of one distribution (SimCLR, arXiv 2002.05709, Sec. 3 and App. A; CIFAR-10: App. B.9).

    Crop .08-1, flip, jitter (.8, .8, .8, .2) * strength with probability .8, grey .2, blur .5 with a kernel of a tenth
    of the side and sigma U(.1, 2). Small images: strength .5, no blur.

    Args:
        image_size: side in pixels.
        scale: area share of the crops.
        strength: s, default 1 (small images .5).
        blur: probability, default .5 (small images 0).
    """
    small = image_size <= SMALL
    look = _colours(0.8, 0.2, 0.5 if small and strength is None else 1.0 if strength is None else strength)
    look = replace(look, blur=(0.0 if small else 0.5) if blur is None else blur)
    return (View(name="global", count=2, crop=Crop(size=image_size, scale=scale), look=look),)


def mocov1_views(
    image_size: int = 224, *, scale: tuple[float, float] = (0.2, 1.0), strength: float = 1.0
) -> tuple[View, ...]:
    """Two views of one distribution (MoCo, arXiv 1911.05722, Sec. 3.3; Wu et al. 2018).

    Crop .2-1, flip, jitter (.4, .4, .4, .4) * strength always, grey .2, no blur. The public code turns images grey
    before the jitter, here it comes after: on a grey image saturation and hue do nothing, in either order.
    """
    look = replace(_colours(0.4, 0.4, strength), jitter=1.0)
    return (View(name="global", count=2, crop=Crop(size=image_size, scale=scale), look=look),)


def mocov2_views(
    image_size: int = 224,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    strength: float | None = None,
    blur: float | None = None,
) -> tuple[View, ...]:
    """Two views of one distribution (MoCo v2, arXiv 2003.04297, Sec. 3; also SimSiam's).

    Crop .2-1, flip, jitter (.4, .4, .4, .1) * strength with probability .8, grey .2, blur .5. Small images: no blur.
    The jitter is half of SimCLR's already, so small images keep it.
    """
    look = _colours(0.4, 0.1, 1.0 if strength is None else strength)
    look = replace(look, blur=(0.0 if image_size <= SMALL else 0.5) if blur is None else blur)
    return (View(name="global", count=2, crop=Crop(size=image_size, scale=scale), look=look),)


def byol_views(
    image_size: int = 224,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    strength: float = 1.0,
    blur: float | None = None,
    solarise: float = 0.2,
) -> tuple[View, ...]:
    """T and T' (BYOL, arXiv 2006.07733, App. B, Table 6; also MoCo v3, Barlow Twins, VICReg).

    Crop .08-1 bicubic, flip, jitter (.4, .4, .2, .1) with probability .8, grey .2; blur 1 and .1, solarise 0 and
    `solarise`.

    Args:
        image_size: side in pixels.
        scale: area share of the crops.
        strength: factor on the jitter.
        blur: factor on the blur probabilities, default 1 (small images 0).
        solarise: probability in T'.
    """
    factor = _blur_factor(image_size, blur)
    base = _byol_colours(strength)
    first = replace(base, blur=1.0 * factor)
    second = replace(base, blur=0.1 * factor, solarise=solarise)
    crop = Crop(size=image_size, scale=scale, interpolation="bicubic")
    return (View(name="global", count=2, crop=crop, looks=(first, second)),)


def swav_views(
    image_size: int = 224,
    *,
    local_size: int | None = None,
    local_crops: int = 6,
    global_scale: tuple[float, float] = (0.14, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.14),
    strength: float | None = None,
    blur: float | None = None,
) -> tuple[View, ...]:
    """Multi-crop of SwAV (arXiv 2006.09882, Sec. 3.3 and App. A): 2 large and 6 small crops, SimCLR's colours.

    Args:
        image_size: side of the large crops in pixels.
        local_size: side of the small crops, default 96 of 224 in proportion, a multiple of 8.
        local_crops: number of small crops.
        global_scale: area share of the large crops.
        local_scale: area share of the small crops.
        strength: see `simclr_views`.
        blur: see `simclr_views`.
    """
    (large,) = simclr_views(image_size, scale=global_scale, strength=strength, blur=blur)
    if local_crops == 0:
        return (large,)
    crop = Crop(size=local_size or _local_size(image_size), scale=local_scale)
    return (large, View(name="local", count=local_crops, crop=crop, look=large.look))


def dino_views(
    image_size: int = 224,
    *,
    local_size: int | None = None,
    local_crops: int = 8,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
    strength: float = 1.0,
    blur: float | None = None,
) -> tuple[View, ...]:
    """Multi-crop of DINO (arXiv 2104.14294, Sec. 3.1 and App. E; facebookresearch/dino, DataAugmentationDINO).

    Crops bicubic. First large crop: blur 1; second: blur .1, solarise .2; small crops: blur .5; all: flip,
    jitter (.4, .4, .2, .1) with probability .8, grey .2, sigma U(.1, 2). The public code blurs by a filter without a
    fixed side; here it is wide enough (3 sigma) that its side does not matter.

    Args:
        image_size: side of the large crops in pixels.
        local_size: side of the small crops, default 96 of 224 in proportion, a multiple of 8.
        local_crops: number of small crops.
        global_scale: area share of the large crops.
        local_scale: area share of the small crops.
        strength: factor on the jitter.
        blur: factor on the blur probabilities, default 1 (small images 0).
    """
    factor = _blur_factor(image_size, blur)
    small_side = local_size or _local_size(image_size)
    base = _byol_colours(strength)
    wide = replace(base, blur_kernel=_wide_kernel(base.blur_sigma[1], image_size))
    looks = (replace(wide, blur=1.0 * factor), replace(wide, blur=0.1 * factor, solarise=0.2))
    crop = Crop(size=image_size, scale=global_scale, interpolation="bicubic")
    large = View(name="global", count=2, crop=crop, looks=looks)
    if local_crops == 0:
        return (large,)
    look = replace(base, blur=0.5 * factor, blur_kernel=_wide_kernel(base.blur_sigma[1], small_side))
    crop = Crop(size=small_side, scale=local_scale, interpolation="bicubic")
    return (large, View(name="local", count=local_crops, crop=crop, look=look))


def mae_views(image_size: int = 224, *, scale: tuple[float, float] = (0.2, 1.0)) -> tuple[View, ...]:
    """One bicubic crop .2-1 and a flip (MAE, arXiv 2111.06377, Sec. 4 and App. A, Table 8); any image size."""
    crop = Crop(size=image_size, scale=scale, interpolation="bicubic")
    return (View(name="global", crop=crop, look=Look(flip=0.5)),)


def probe_views(image_size: int = 224, *, scale: tuple[float, float] = (0.08, 1.0)) -> tuple[View, ...]:
    """One crop and a flip: the training view of a linear probe on augmented images (He et al. 2016; MoCo, Sec. 4.1)."""
    return (View(name="global", crop=Crop(size=image_size, scale=scale), look=Look(flip=0.5)),)


def caption_views(
    image_size: int = 224, *, scale: tuple[float, float] = (0.9, 1.0), flip: float = 0.0, strength: float = 0.0
) -> tuple[View, ...]:
    """One bicubic crop .9-1 and nothing else: what a caption says must still hold (CLIP, arXiv 2103.00020, Sec. 2.3).

    Args:
        image_size: side in pixels.
        scale: area share of the crop; (1, 1) squeezes the whole image into the square (SigLIP).
        flip: probability of a flip, which makes "left" wrong.
        strength: of jitter (.4, .4, .4, .1) with probability .8, which keeps colours what they are called.
    """
    crop = Crop(
        size=image_size, scale=scale, ratio=None if scale == (1.0, 1.0) else (3 / 4, 4 / 3), interpolation="bicubic"
    )
    look = replace(_colours(0.4, 0.1, strength), grey=0.0) if strength else Look()
    return (View(name="global", crop=crop, look=replace(look, flip=flip)),)


def evaluation_views(
    image_size: int = 224, *, resize: int | None = None, interpolation: Interpolation = "bicubic"
) -> tuple[View, ...]:
    """The plain view: shorter side to `resize`, centre crop (He et al. 2016, Sec. 3.4: 256 for 224).

    Args:
        image_size: side in pixels.
        resize: default 8/7 of `image_size`; small images are resized to `image_size` itself, so nothing is cut away.
        interpolation: resampling filter.
    """
    if resize is None:
        resize = image_size if image_size <= SMALL else round(image_size * 8 / 7)
    crop = CenterCrop(size=image_size, resize=resize, interpolation=interpolation)
    return (View(name="eval", crop=crop, look=PLAIN),)


def _colours(jitter: float, hue: float, strength: float) -> Look:
    x = jitter * strength
    hue = min(0.5, hue * strength)
    return Look(flip=0.5, brightness=x, contrast=x, saturation=x, hue=hue, jitter=0.8, grey=0.2)


def _byol_colours(strength: float) -> Look:
    return replace(_colours(0.4, 0.1, strength), saturation=0.2 * strength)


def _blur_factor(image_size: int, blur: float | None) -> float:
    return (0.0 if image_size <= SMALL else 1.0) if blur is None else blur


def _wide_kernel(sigma: float, size: int) -> float:
    """Return the share of the side that a kernel of 3 sigma to both sides takes, at most all of it."""
    return min(1.0, (2 * math.ceil(3 * sigma) + 1) / size)


def _local_size(image_size: int) -> int:
    return max(8, round(image_size * 96 / 224 / 8) * 8)
