import warnings

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.lab import lab_to_rgb, rgb_to_lab

skcolor = pytest.importorskip("skimage.color")


def colours(count=4000):
    rng = np.random.default_rng(0)
    corners = np.array(np.meshgrid([0.0, 1.0], [0.0, 1.0], [0.0, 1.0])).reshape(3, -1).T
    dark = rng.random((500, 3)) * 0.05  # the straight parts of both curves
    return np.concatenate([rng.random((count, 3)), corners, dark])


def as_images(colours_P3):
    return torch.from_numpy(colours_P3.T[None, :, :, None].copy())


def test_lab_equals_scikit_image():
    rgb = colours()
    ours = rgb_to_lab(as_images(rgb))
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours[0, :, :, 0].T.numpy(), skcolor.rgb2lab(rgb), rtol=0, atol=1e-9)


def test_back_to_rgb_equals_scikit_image():
    rng = np.random.default_rng(1)
    lab = np.stack([rng.uniform(0, 100, 3000), rng.uniform(-60, 60, 3000), rng.uniform(-60, 60, 3000)], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # colours outside sRGB are cut off, which scikit-image mentions
        expected = skcolor.lab2rgb(lab)
    np.testing.assert_allclose(lab_to_rgb(as_images(lab))[0, :, :, 0].T.numpy(), expected, rtol=0, atol=1e-6)


def test_there_and_back_in_float32_and_within_autocast():
    images = as_images(colours()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lab = rgb_to_lab(images)
        back = lab_to_rgb(lab)
    assert lab.dtype == back.dtype == torch.float32
    torch.testing.assert_close(back, images, rtol=0, atol=2e-4)
    torch.testing.assert_close(lab.double(), rgb_to_lab(images.double()), rtol=0, atol=2e-3)


def test_any_leading_dimensions_and_low_precision():
    images = torch.rand(2, 5, 3, 4, 6)
    torch.testing.assert_close(rgb_to_lab(images)[1, 3], rgb_to_lab(images[1, 3]), rtol=1e-4, atol=1e-4)  # float32
    assert rgb_to_lab(images.half()).dtype == torch.float32


def test_grey_has_no_colour_and_white_is_100():
    lab = rgb_to_lab(torch.tensor([0.0, 0.3, 1.0]).double().expand(3, 3)[:, None])
    torch.testing.assert_close(lab[1:], torch.zeros_like(lab[1:]), rtol=0, atol=0.02)  # the digits of the matrix
    torch.testing.assert_close(lab[0, 0, ::2], torch.tensor([0.0, 100.0]).double(), rtol=0, atol=1e-6)


def test_other_channels_are_refused():
    with pytest.raises(ConfigError, match="three channels"):
        rgb_to_lab(torch.rand(2, 1, 4, 4))
    with pytest.raises(ConfigError, match="three channels"):
        lab_to_rgb(torch.rand(4, 4))
