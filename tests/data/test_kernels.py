"""Each operator against torchvision's, on photographs and on noise, in levels of 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch

import imprint.backbones.torchvision_compat  # noqa: F401 - before torchvision
from imprint.data import draws as d
from imprint.data.augment import ViewEngine
from imprint.data.views import Crop, Interpolation, Look, View

torchvision = pytest.importorskip("torchvision.transforms.v2.functional")
SIDE = 160  # a multiple of the tile's 16
Operator = Callable[[torch.Tensor], torch.Tensor]


def photographs() -> list[np.ndarray[Any, Any]]:
    found = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    found.append(np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8))
    return [np.ascontiguousarray(picture[20:300, 30:310, :3]) for picture in found]


PHOTOGRAPHS = photographs()


def engine_for(size: int, side: int, mode: Interpolation = "bilinear") -> ViewEngine:
    crop = Crop(size=size, scale=(1.0, 1.0), ratio=(1.0, 1.0), interpolation=mode)
    return ViewEngine([View(name="v", crop=crop, look=Look(blur=1.0, blur_kernel=23 / size))])


def ours(picture: np.ndarray[Any, Any], size: int, mode: Interpolation = "bilinear", **columns: float) -> torch.Tensor:
    """Render the whole square picture with the named columns of its look set."""
    engine = engine_for(size, picture.shape[0], mode)
    drawn = engine.draw(0, 0, [0])
    look = drawn["v"].look_BVP
    look[:] = 0
    look[..., d.FIRST_OPERATION : d.FIRST_OPERATION + 4] = d.NO_OPERATION
    for name, value in columns.items():
        look[..., int(name[1:])] = value
    out = np.empty((1, 1, 3, size, size), np.uint8)
    engine.render(picture, drawn, 0, {"v": out})
    return torch.from_numpy(out[0, 0]).int()


def tensor(picture: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)


def differences(operator: Operator, size: int = SIDE, **columns: float) -> tuple[float, float]:
    """Return the largest and the mean difference over all pictures."""
    found = []
    for picture in PHOTOGRAPHS:
        square = np.ascontiguousarray(picture[:size, :size])
        found.append((ours(square, size, **columns) - operator(tensor(square)).int()).abs().float())
    every = torch.stack(found)
    return float(every.max()), float(every.mean())


def test_nothing_changes_nothing() -> None:
    assert differences(lambda x: x) == (0, 0)


def test_flip_grey_and_solarise_are_exact() -> None:
    assert differences(torchvision.horizontal_flip, _0=1) == (0, 0)
    assert differences(lambda x: torchvision.rgb_to_grayscale(x, 3), _9=1) == (0, 0)
    assert differences(lambda x: torchvision.solarize(x, 128), _11=1) == (0, 0)


@pytest.mark.parametrize("factor", [0.0, 0.2, 0.63, 1.0, 1.41, 1.8])
def test_brightness_contrast_saturation(factor: float) -> None:
    for operation, operator, mean in (
        (d.BRIGHTNESS, torchvision.adjust_brightness, 0.0),
        (d.CONTRAST, torchvision.adjust_contrast, 0.001),
        (d.SATURATION, torchvision.adjust_saturation, 0.06),
    ):
        exact = float(np.float32(factor))
        columns = {"_1": float(operation), f"_{d.FIRST_FACTOR + operation}": factor}
        largest, average = differences(lambda x, f=operator, e=exact: f(x, e), **columns)
        assert largest <= 1 and average <= mean


@pytest.mark.parametrize("shift", [-0.5, -0.2, -0.03, 0.0, 0.1, 0.35, 0.5])
def test_hue(shift: float) -> None:
    largest, average = differences(lambda x: torchvision.adjust_hue(x, float(np.float32(shift))), _1=d.HUE, _8=shift)
    assert largest <= 1 and average <= 0.002


def test_hue_of_grey_and_of_pure_colours() -> None:
    levels = np.array([0, 1, 127, 254, 255], np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    picture = np.resize(cube, (32, 32, 3))
    for shift in (-0.4, 0.1, 1 / 3):
        expected = torchvision.adjust_hue(tensor(picture), float(np.float32(shift))).int()
        assert (ours(picture, 32, _1=d.HUE, _8=shift) - expected).abs().max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 1.0, 1.5, 2.0])
def test_blur(sigma: float) -> None:
    exact = float(np.float32(sigma))
    largest, average = differences(lambda x: torchvision.gaussian_blur(x, [23, 23], [exact, exact]), _10=sigma)
    assert largest <= 1 and average <= 0.25


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1), (-1, 1, -1, 0)])
def test_operations_follow_the_drawn_order(order: tuple[int, ...]) -> None:
    factors = [float(np.float32(f)) for f in (1.35, 0.6, 1.5, -0.07)]
    operators = (
        torchvision.adjust_brightness,
        torchvision.adjust_contrast,
        torchvision.adjust_saturation,
        torchvision.adjust_hue,
    )

    def chain(x: torch.Tensor) -> torch.Tensor:
        for n in order:
            x = operators[n](x, factors[n]) if n >= 0 else x
        return x

    columns = {f"_{1 + n}": float(o) for n, o in enumerate(order)} | {f"_{5 + n}": f for n, f in enumerate(factors)}
    largest, average = differences(chain, **columns)
    assert largest <= 3 and average <= 0.06  # one level before saturation is several after it


@pytest.mark.parametrize("size", [224, 96, 98, 33, 16, 7])
@pytest.mark.parametrize(("mode", "photographs", "noise"), [("bilinear", 2, 3), ("bicubic", 12, 25)])
def test_resize(size: int, mode: Interpolation, photographs: int, noise: int) -> None:
    # Ours weighs columns after rows, torchvision rows after columns; both round in between, and clamp, which on noise
    # cuts the cubic filter's overshoot at different places.
    errors = []
    for picture in PHOTOGRAPHS:
        for side in (280, 224, 100):
            square = np.ascontiguousarray(picture[:side, :side])
            expected = torchvision.resize(tensor(square), [size, size], getattr(MODES, mode.upper()), antialias=True)
            error = (ours(square, size, mode) - expected.int()).abs().float()
            errors.append((float(error.max()), float(error.mean())))
    worst, mean = np.array(errors).T
    assert worst[:-3].max() <= photographs and worst[-3:].max() <= noise
    assert mean[:-3].max() <= 0.3 and mean[-3:].max() <= 0.5


@pytest.mark.parametrize("size", [96, 98, 33, 16])
def test_sizes_that_are_no_multiple_of_a_tile(size: int) -> None:
    def chain(x: torch.Tensor) -> torch.Tensor:
        x = torchvision.adjust_contrast(torchvision.horizontal_flip(x), 0.5)
        return torchvision.solarize(torchvision.gaussian_blur(x, [23, 23], [1.0, 1.0]), 128)

    for picture in PHOTOGRAPHS:
        square = np.ascontiguousarray(picture[:size, :size])
        expected = chain(tensor(square)).int()
        got = ours(square, size, _0=1, _1=d.CONTRAST, _6=0.5, _10=1.0, _11=1)
        difference = (got - expected).abs()
        across = (got - 128).abs() <= 1  # a level more or less at the threshold is inverted or not
        assert difference[~across & ((expected - 128).abs() > 1)].max() <= 1


MODES: Any = pytest.importorskip("torchvision.transforms").InterpolationMode
