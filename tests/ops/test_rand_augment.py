"""RandAugment's operations against PIL's, image by image."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from imprint.ops.rand_augment import OPERATIONS, rand_augment

FILL = (124, 116, 104)
STRENGTHS = (-0.9, -0.35, 0.0, 0.4, 0.95)


def images():
    """Smooth structure with noise, one flat image, one of few grey levels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:32]
    wave = 120 + 80 * np.sin(x / 5)[..., None] * np.cos(y / 4)[..., None] * np.array([1.0, 0.6, -0.8])
    noisy = np.clip(wave + rng.normal(0, 3, wave.shape), 0, 255)
    few = np.where(x[..., None] > 12, 40, 200) * np.ones(3)
    return np.stack([noisy, np.full_like(noisy, 77), few]).astype(np.uint8)


def by_pil(image, name, s):
    level, size = abs(s), image.size
    warp = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
    shift = {"translate_x": (1, 0, 0.45 * s * size[0], 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, 0.45 * s * size[1])}
    shear = {"shear_x": (1, 0.3 * s, 0, 0, 1, 0), "shear_y": (1, 0, 0, 0.3 * s, 1, 0)}
    if name == "rotate":
        return image.rotate(30 * s, **warp)
    if name in shift | shear:
        return image.transform(size, Image.Transform.AFFINE, (shift | shear)[name], **warp)
    factor = max(0.1, 1 + 0.9 * s)
    enhance = {"colour": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness,
               "sharpness": ImageEnhance.Sharpness}  # fmt: skip
    if name in enhance:
        return enhance[name](image).enhance(factor)
    if name == "posterise":
        bits = 4 - int(4 * level)
        return image.point([v & ~(2 ** (8 - bits) - 1) for v in range(256)] * 3)
    if name == "solarise":
        return ImageOps.solarize(image, 256 - int(256 * level))
    if name == "solarise_add":
        return image.point([min(255, v + int(110 * level)) if v < 128 else v for v in range(256)] * 3)
    return {"auto_contrast": ImageOps.autocontrast, "equalise": ImageOps.equalize, "invert": ImageOps.invert}[name](
        image
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_pils(name):
    pixels = images()
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).repeat(len(STRENGTHS), 1, 1, 1)
    strength = torch.tensor(STRENGTHS).repeat_interleave(len(pixels))
    operation = torch.full((len(batch),), OPERATIONS.index(name))
    found = rand_augment(batch, operation, strength, torch.tensor(FILL, dtype=torch.float32))
    for i in range(len(batch)):
        image = Image.fromarray(pixels[i % len(pixels)])
        want = np.asarray(by_pil(image, name, float(strength[i]))).astype(int)
        difference = np.abs(found[i].permute(1, 2, 0).numpy().astype(int) - want)
        if OPERATIONS.index(name) < 5:  # another cubic (a = -0.75, PIL -1), and rounding where the border is cut
            assert np.quantile(difference, 0.97) <= 12 and difference.mean() < 1.5, (name, float(strength[i]))
        else:
            assert difference.max() <= 1, (name, float(strength[i]))


def test_images_are_independent_and_may_stay_as_they_are():
    batch = torch.from_numpy(images()).permute(0, 3, 1, 2).repeat(6, 1, 1, 1)
    operation = torch.arange(len(batch)) % (len(OPERATIONS) + 1) - 1
    strength = torch.linspace(-1, 1, len(batch))
    fill = torch.tensor(FILL, dtype=torch.float32)
    together = rand_augment(batch, operation, strength, fill)
    for i in range(len(batch)):
        alone = rand_augment(batch[i : i + 1], operation[i : i + 1], strength[i : i + 1], fill)
        assert torch.equal(together[i], alone[0])
    assert torch.equal(together[operation < 0], batch[operation < 0])
    assert together.dtype == torch.uint8


def test_other_numbers_of_channels_work():
    batch = torch.from_numpy(images()).permute(0, 3, 1, 2)[:1, :2].repeat(len(OPERATIONS), 1, 1, 1)
    operation = torch.arange(len(OPERATIONS))
    found = rand_augment(batch, operation, torch.full((len(batch),), 0.5), torch.tensor([10.0, 20.0]))
    same = [name for k, name in enumerate(OPERATIONS) if torch.equal(found[k], batch[k])]
    assert same == ["colour"]
