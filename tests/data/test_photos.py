"""The bundled photographs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from imprint.core.errors import ConfigError, DataError
from imprint.data.photos import LONGEST, PHOTOGRAPHS, photos
from imprint.data.sources import open_source


def test_twenty_photographs_with_tiles_of_each_in_both_splits() -> None:
    train, test = photos("train"), photos("test")
    assert len(PHOTOGRAPHS) == 20 and train.classes == test.classes == tuple(PHOTOGRAPHS)
    for source in (train, test):
        assert source.labels is not None
        assert np.bincount(source.labels, minlength=20).min() >= 2
    assert len(train) > 1500 and len(test) > 500


def test_train_and_test_share_no_pixel() -> None:
    train, test = photos("train", tile=48), photos("test", tile=48)
    right = {}
    for i in range(len(train)):
        name, _, _, _, edge = train.box(i)
        right[name] = max(right.get(name, 0), edge)
    for i in range(len(test)):
        name, _, left, _, _ = test.box(i)
        assert left >= right[name] + 48 // 8


@pytest.mark.parametrize("tile", [32, 96])
def test_tiles_are_real_pixels_of_the_size_asked_for(tile: int) -> None:
    source = photos("train", tile=tile)
    seen = set()
    for i in range(0, len(source), 17):
        image = source.read(i)
        assert isinstance(image, np.ndarray) and image.shape == (tile, tile, 3) and image.dtype == np.uint8
        assert image.std() > 2
        seen.add(image.tobytes())
        assert max(source.box(i)[3:]) <= LONGEST
    assert len(seen) == len(range(0, len(source), 17))


def test_words_open_them_and_names_say_where_they_are() -> None:
    assert open_source("photos").fingerprint == open_source("photos:train").fingerprint
    assert open_source("photos:test").fingerprint != open_source("photos:train").fingerprint
    assert open_source("photos").name(0) == "astronaut@0,0"


def test_wrong_wishes() -> None:
    with pytest.raises(ConfigError, match="test, train"):
        photos("val")
    with pytest.raises(DataError, match="8 to 128"):
        photos("train", tile=512)


def test_neither_scikit_is_imported() -> None:
    code = (
        "import sys; from imprint.data.photos import photos; photos('test'); "
        "print('skimage' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
