"""The papers' numbers, and what small images change."""

from __future__ import annotations

import numpy as np
import pytest

from imprint.data.augment import ViewEngine
from imprint.data.view_recipes import (
    byol_views,
    dino_views,
    evaluation_views,
    mae_views,
    mocov1_views,
    mocov2_views,
    probe_views,
    simclr_views,
    swav_views,
)
from imprint.data.views import CenterCrop, Crop, Look, View


def jitter(look: Look) -> tuple[float, ...]:
    return look.brightness, look.contrast, look.saturation, look.hue, look.jitter


def crop(view: View) -> Crop:
    assert isinstance(view.crop, Crop)
    return view.crop


def test_simclr() -> None:
    (view,) = simclr_views()
    assert (view.name, view.count, crop(view).size, crop(view).scale) == ("global", 2, 224, (0.08, 1.0))
    assert jitter(view.look) == (0.8, 0.8, 0.8, 0.2, 0.8)
    assert (view.look.flip, view.look.grey, view.look.blur, view.look.blur_sigma) == (0.5, 0.2, 0.5, (0.1, 2.0))
    (small,) = simclr_views(32)
    assert jitter(small.look) == (0.4, 0.4, 0.4, 0.1, 0.8) and small.look.blur == 0
    (given,) = simclr_views(32, strength=1.0, blur=0.5)
    assert given.look == view.look


def test_mocov1() -> None:
    (view,) = mocov1_views()
    assert (view.name, view.count, crop(view).size, crop(view).scale) == ("global", 2, 224, (0.2, 1.0))
    assert jitter(view.look) == (0.4, 0.4, 0.4, 0.4, 1.0) and (view.look.grey, view.look.blur) == (0.2, 0.0)
    assert jitter(mocov1_views(strength=0.5)[0].look) == (0.2, 0.2, 0.2, 0.2, 1.0)


def test_mocov2() -> None:
    (view,) = mocov2_views()
    assert crop(view).scale == (0.2, 1.0) and jitter(view.look) == (0.4, 0.4, 0.4, 0.1, 0.8) and view.look.blur == 0.5
    assert mocov2_views(32)[0].look.blur == 0


def test_byol() -> None:
    (view,) = byol_views()
    first, second = view.looks
    assert crop(view).interpolation == "bicubic" and jitter(first) == jitter(second) == (0.4, 0.4, 0.2, 0.1, 0.8)
    assert (first.blur, second.blur, first.solarise, second.solarise) == (1.0, 0.1, 0.0, 0.2)


def test_swav() -> None:
    large, small = swav_views()
    assert (large.count, crop(large).size, crop(large).scale) == (2, 224, (0.14, 1.0))
    assert (small.count, crop(small).size, crop(small).scale) == (6, 96, (0.05, 0.14))
    assert large.look == small.look == simclr_views()[0].look
    assert len(swav_views(local_crops=0)) == 1


def test_dino() -> None:
    large, small = dino_views()
    assert (large.count, crop(large).size, crop(large).scale) == (2, 224, (0.4, 1.0))
    assert (small.count, crop(small).size, crop(small).scale) == (8, 96, (0.05, 0.4))
    assert crop(large).interpolation == crop(small).interpolation == "bicubic"
    assert [(x.blur, x.solarise) for x in large.looks] == [(1.0, 0.0), (0.1, 0.2)]
    assert (small.look.blur, small.look.solarise) == (0.5, 0.0)
    assert all(x.blur_kernel * side >= 12 for x, side in [(large.looks[0], 224), (small.look, 96)]), "3 sigma both ways"
    tiny_large, tiny_small = dino_views(32, local_size=16)
    assert crop(tiny_small).size == 16 and all(x.blur == 0 for x in (*tiny_large.looks, tiny_small.look))
    assert crop(dino_views(112)[1]).size == 48


def test_mae_probe_and_evaluation() -> None:
    (view,) = mae_views()
    assert (view.count, crop(view).scale, crop(view).interpolation) == (1, (0.2, 1.0), "bicubic")
    assert view.look == Look(flip=0.5) == probe_views()[0].look
    (plain,) = evaluation_views(224)
    assert plain.crop == CenterCrop(size=224, resize=256) and plain.look == Look()
    assert evaluation_views(32)[0].crop == CenterCrop(size=32, resize=32)


@pytest.mark.parametrize("recipe", [simclr_views, mocov2_views, byol_views, swav_views, dino_views, mae_views])
@pytest.mark.parametrize("size", [32, 72])
def test_every_recipe_renders_at_small_sizes(recipe: object, size: int) -> None:
    assert callable(recipe)
    engine = ViewEngine(recipe(size))
    out = {name: np.zeros((v, 1, *rest), np.uint8) for name, (v, *rest) in engine.shapes().items()}
    picture = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    engine.render(picture, engine.draw(0, 0, [0]), 0, out)
    assert all(view.std(axis=(2, 3, 4)).min() > 3 for view in out.values()), "every crop shows something"
    assert engine.shapes()["global"][-1] == size
