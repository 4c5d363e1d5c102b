"""Overlays, strips and films."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imprint.core.errors import MissingExtra
from imprint.viz.colours import category, rgb
from imprint.viz.video_strip import film, overlay, strip


def frames(count: int = 3) -> list[np.ndarray]:
    return [np.full((40, 61, 3), 100 + 10 * i, np.uint8) for i in range(count)]


def ids() -> np.ndarray:
    out = np.zeros((40, 61), np.uint8)
    out[10:20, 10:30], out[25:35, 40:55] = 1, 3
    return out


def test_overlay_colours_objects_and_outlines_the_truth() -> None:
    image = frames(1)[0]
    plain = overlay(image, ids())
    assert np.array_equal(plain[0, 0], image[0, 0]) and plain.shape == image.shape and image.min() == 100
    for (y, x), k in (((15, 15), 1), ((30, 45), 3)):
        want = 0.45 * 100 + 0.55 * np.array(rgb(category(k - 1)))
        assert np.abs(plain[y, x] - want).max() <= 1
    truth = ids()
    truth[0, :] = 255  # void has no outline
    outlined = overlay(image, np.zeros_like(truth), truth)
    assert outlined[10:20, 10].min() > 200 and np.array_equal(outlined[0, 5], image[0, 5])
    assert overlay(image, ids(), width=122).shape == (80, 122, 3)


def test_strip_shows_the_given_mask_where_nothing_was_predicted() -> None:
    picture = strip(frames(3), [None, ids(), ids()], [ids(), ids(), None], width=61)
    assert picture.shape == (40, 3 * 61 + 2 * 4, 3)
    assert not np.array_equal(picture[15, 20], [100, 100, 100])  # the true object is coloured in
    with pytest.raises(ValueError, match="at least one"):
        strip([], [], [])


def test_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "av", None)
        with pytest.raises(MissingExtra, match=r"imprint\[video\]"):
            film(frames(), tmp_path / "a.mp4")
    av = pytest.importorskip("av")
    path = film(frames(5), tmp_path / "new" / "a.mp4")
    with av.open(str(path)) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert shapes == [(40, 60, 3)] * 5 and list(path.parent.iterdir()) == [path]
