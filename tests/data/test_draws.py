"""Drawn parameters: pure functions of (seed, epoch, sample, view, copy), with the distributions a Look asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imprint.data import draws as d
from imprint.data.view_recipes import dino_views, evaluation_views
from imprint.data.views import Crop, Look, View

FULL = Look(
    flip=0.5, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, jitter=0.8, grey=0.2, blur=0.5, solarise=0.3
)
VIEW = View(name="v", count=3, crop=Crop(size=8, scale=(0.2, 0.7)), look=FULL)


def same(a: d.ViewDraws, b: d.ViewDraws, rows: Any = slice(None)) -> bool:
    fields = ("shares_BVT", "aspects_BVT", "place_BV2", "look_BVP")
    return all(np.array_equal(getattr(a, f)[rows], getattr(b, f)) for f in fields)


def test_a_sample_is_drawn_alike_in_any_batch() -> None:
    whole = d.draw(dino_views(), 7, 3, np.arange(40))
    order = np.array([31, 2, 2, 17])
    part = d.draw(dino_views(), 7, 3, order)
    assert set(whole.by_view) == {"global", "local"}
    assert all(same(whole[name], part[name], order) for name in whole.by_view)


def test_every_part_of_the_key_matters() -> None:
    base = d.draw([VIEW], 1, 2, [5])["v"].look_BVP
    for other in (d.draw([VIEW], 2, 2, [5]), d.draw([VIEW], 1, 3, [5]), d.draw([VIEW], 1, 2, [6])):
        assert not np.array_equal(base, other["v"].look_BVP)
    renamed = View(name="w", count=3, crop=VIEW.crop, look=FULL)
    assert not np.array_equal(base, d.draw([renamed], 1, 2, [5])["w"].look_BVP)
    assert len(np.unique(base[0], axis=0)) == 3, "copies differ"


def test_more_copies_leave_the_first_ones_as_they_were() -> None:
    one = View(name="v", count=1, crop=VIEW.crop, look=FULL)
    assert np.array_equal(
        d.draw([one], 0, 0, range(9))["v"].look_BVP, d.draw([VIEW], 0, 0, range(9))["v"].look_BVP[:, :1]
    )


def test_numbers_are_frozen() -> None:
    drawn = d.draw([VIEW], 0, 0, [0])["v"]
    look = [0.0, 2.0, 3.0, 0.0, 1.0, 1.05718, 2.3039, 1.0193, -0.01134, 0.0, 0.0, 0.0]
    assert drawn.shares_BVT[0, 0, :3] == pytest.approx([0.4565016, 0.2608222, 0.2405094], abs=1e-6)
    assert drawn.look_BVP[0, 0] == pytest.approx(look, abs=1e-4)


def test_distributions() -> None:
    n = 30_000
    drawn = d.draw([VIEW], 11, 0, np.arange(n // 3))["v"]
    look = drawn.look_BVP.reshape(-1, d.LOOK_COLUMNS)

    def share(values: Any, probability: float) -> bool:
        return bool(abs(np.mean(values) - probability) < 4.5 * (probability * (1 - probability) / n) ** 0.5)

    assert share(look[:, d.FLIP], 0.5) and share(look[:, d.GREY], 0.2) and share(look[:, d.SOLARISE], 0.3)
    assert share(look[:, d.SIGMA] > 0, 0.5)
    orders = look[:, 1:5]
    jittered = (orders >= 0).all(1)
    assert share(jittered, 0.8) and (orders[~jittered] == d.NO_OPERATION).all()
    permutations, counts = np.unique(orders[jittered], axis=0, return_counts=True)
    expected = jittered.sum() / 24
    assert len(permutations) == 24 and ((counts - expected) ** 2 / expected).sum() < 60  # chi squared, 23 dof
    for column, low, high in ((5, 0.6, 1.4), (6, 0.0, 2.5), (7, 0.8, 1.2), (8, -0.1, 0.1)):
        values = (look[:, column] - low) / (high - low)
        assert values.min() >= -1e-6 and values.max() <= 1 + 1e-6 and abs(values.mean() - 0.5) < 0.01
        assert abs(np.corrcoef(values, look[:, d.FLIP])[0, 1]) < 0.03
    sigma = look[:, d.SIGMA][look[:, d.SIGMA] > 0]
    assert sigma.min() >= 0.1 and sigma.max() <= 2.0 and abs(sigma.mean() - 1.05) < 0.03
    assert drawn.shares_BVT.min() >= 0.2 and drawn.shares_BVT.max() <= 0.7
    assert abs(np.log(drawn.aspects_BVT).mean()) < 0.01
    assert np.abs(np.log(drawn.aspects_BVT)).max() <= np.log(4 / 3) + 1e-9
    assert drawn.place_BV2.min() >= 0 and drawn.place_BV2.max() < 1


def test_operations_of_no_strength_are_left_out() -> None:
    view = View(name="v", crop=Crop(size=8), look=Look(brightness=0.4, hue=0.1, jitter=1.0))
    orders = d.draw([view], 0, 0, range(50))["v"].look_BVP[..., 1:5]
    assert set(np.unique(orders)) == {d.NO_OPERATION, d.BRIGHTNESS, d.HUE}
    assert ((orders >= 0).sum(-1) == 2).all()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_colour_operations_need_three_channels(channels: int) -> None:
    look = d.draw([VIEW], 0, 0, range(200), channels=channels)["v"].look_BVP
    assert set(np.unique(look[..., 1:5])) == {d.NO_OPERATION, d.BRIGHTNESS, d.CONTRAST}
    assert not look[..., d.GREY].any()
    colour = d.draw([VIEW], 0, 0, range(200))["v"].look_BVP
    assert np.array_equal(look[..., d.FLIP], colour[..., d.FLIP]), "the other parameters stay the same"


def test_one_look_per_copy() -> None:
    look = d.draw(dino_views(), 0, 0, np.arange(400))["global"].look_BVP
    assert (look[:, 0, d.SIGMA] > 0).all() and 0.05 < (look[:, 1, d.SIGMA] > 0).mean() < 0.16
    assert not look[:, 0, d.SOLARISE].any() and 0.13 < look[:, 1, d.SOLARISE].mean() < 0.28


def test_a_plain_view_draws_nothing() -> None:
    drawn = d.draw(evaluation_views(), 0, 0, range(4))["eval"]
    look = drawn.look_BVP
    assert look.shape == (4, 1, d.LOOK_COLUMNS) and drawn.shares_BVT.size == 0
    assert (look[..., 1:5] == d.NO_OPERATION).all() and not look[..., [d.FLIP, d.GREY, d.SIGMA, d.SOLARISE]].any()
