import dataclasses

import numpy as np
import pytest

from imprint.core.errors import ConfigError
from imprint.core.progress import Steps
from imprint.data.arrays import ArraySource
from imprint.recipes.book import recipe
from imprint.train.entry import pretrain_run
from imprint.train.pretext import pretext_accuracy


def trained(method, folder, images):
    config = dataclasses.replace(recipe(f"{method}/debug"), device="cpu", workers=1, length=Steps(2))
    return pretrain_run(config, folder / method, source=images)


def test_answers_are_counted_once_per_image_and_the_same_every_time(tmp_path):
    images = ArraySource(np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8))
    run = trained("rotation", tmp_path, images)
    found = pretext_accuracy(run, images, batch_size=16)
    assert 0 <= found <= 100 and (found * 40 * 4 / 100) == pytest.approx(round(found * 40 * 4 / 100))
    assert pretext_accuracy(run, images, batch_size=40) == pytest.approx(found)


def test_a_method_without_right_answers_is_refused(tmp_path):
    images = ArraySource(np.random.default_rng(0).integers(0, 255, (40, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(ConfigError, match="simclr"):
        pretext_accuracy(trained("simclr", tmp_path, images), images)
