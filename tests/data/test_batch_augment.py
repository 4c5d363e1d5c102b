"""RandAugment and random erasing of a batch: drawn by sample, at the stated rates, both depths; also in the loader."""

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.data.arrays import ArraySource
from imprint.data.augment import ViewEngine
from imprint.data.batch import Normalise
from imprint.data.batch_augment import draw_operations, draw_rectangles, erased, rand_augmented
from imprint.data.loader import Loader
from imprint.data.views import CenterCrop, Look, Operations, View
from imprint.ops.rand_augment import OPERATIONS, rand_augment


def test_operations_have_the_stated_distribution():
    operation, strength = draw_operations(0, 3, np.arange(20000), 9.0, 0.5)
    assert operation.shape == strength.shape == (2, 20000)
    assert abs((operation >= 0).mean() - 0.5) < 0.01
    counts = np.bincount(operation[operation >= 0], minlength=len(OPERATIONS)) / (operation >= 0).sum()
    assert np.abs(counts - 1 / len(OPERATIONS)).max() < 0.01
    level = 10 * np.abs(strength)
    assert level.max() <= 10 and abs(np.median(level) - 9) < 0.05 and abs((strength > 0).mean() - 0.5) < 0.02
    part, _ = draw_operations(0, 3, np.arange(5, 10), 9.0, 0.5)
    assert np.array_equal(part, operation[:, 5:10])  # a function of the sample, not of the batch
    assert not np.array_equal(draw_operations(0, 4, np.arange(20000), 9.0, 0.5)[0], operation)


def test_rectangles_have_the_stated_share_and_shape():
    box = draw_rectangles(0, 0, np.arange(20000), 0.25, 64, 64)
    tall, wide = box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]
    hit = tall > 0
    assert abs(hit.mean() - 0.25) < 0.01 and (wide[~hit] == 0).all()
    share = (tall * wide)[hit] / 64**2
    assert share.min() > 0.015 and share.max() < 0.36 and abs(share.mean() - (0.02 + 1 / 3) / 2) < 0.01
    assert box.min() >= 0 and box.max() <= 64
    assert not draw_rectangles(0, 0, np.arange(50), 0.0, 64, 64).any()


def test_only_the_rectangle_changes():
    images = torch.full((64, 3, 16, 16), 7.0)
    result = erased(images, np.arange(64), 0, 0, 0.5)
    for b, (top, bottom, left, right) in enumerate(draw_rectangles(0, 0, np.arange(64), 0.5, 16, 16).tolist()):
        inside = torch.zeros(16, 16, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert (result[b][:, ~inside] == 7).all() and (result[b][:, inside] != 7).all()
    assert (images == 7).all() and torch.equal(result, erased(images, np.arange(64), 0, 0, 0.5))


def test_sixteen_bits_are_worked_on_as_eight():
    small = (torch.rand(12, 3, 16, 16) * 255).to(torch.uint8)
    deep = (small.int() * 257).to(torch.uint16)
    arguments = (np.arange(12), 1, 2, 9.0, 0.5, Normalise())
    a, b = rand_augmented(small, *arguments), rand_augmented(deep, *arguments)
    assert b.dtype == torch.uint16 and torch.equal((b.int() // 257).to(torch.uint8), a) and not torch.equal(a, small)


def random_view(**changes) -> View:
    crop = CenterCrop(size=24, resize=24)
    return View(name="global", count=2, crop=crop, look=Look(operations=Operations(probability=0.9, **changes)))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_in_the_data_path_the_pixels_are_those_of_the_batch(depth):
    rng, index = np.random.default_rng(0), np.arange(40, 72)
    images = (rng.integers(0, 256, (32, 24, 24, 3)) * (257 if depth == np.uint16 else 1)).astype(depth)
    view = random_view(number=3, fill=(0.1, 0.5, 0.9))
    engine, plain = (ViewEngine((v,), dtype=depth) for v in (view, replace(view, look=Look())))
    out, wanted = (np.empty((2, 32, 3, 24, 24), dtype=depth) for _ in range(2))
    for b, image in enumerate(images):
        engine.render(image, engine.draw(5, 1, index), b, {"global": out})
        plain.render(image, plain.draw(5, 1, index), b, {"global": wanted})
    drawn = engine.draw(5, 1, index)["global"].operations
    changed = torch.from_numpy((wanted // 257 if depth == np.uint16 else wanted).astype(np.uint8))
    for copy in range(2):
        operations, strengths = drawn[copy]
        assert operations.shape == strengths.shape == (32, 3)
        for n in range(3):
            layer = (torch.from_numpy(x[:, n].copy()) for x in (operations, strengths))
            changed[copy] = rand_augment(changed[copy], *layer, torch.tensor([26.0, 128.0, 230.0]))
    assert np.array_equal(out // (257 if depth == np.uint16 else 1), changed.numpy())
    assert not np.array_equal(out, wanted) and not np.array_equal(drawn[0][0], drawn[1][0])  # copies differ


def test_a_loader_gives_the_same_pixels_for_any_number_of_workers_and_any_batch():
    rng = np.random.default_rng(1)
    source = ArraySource(rng.integers(0, 256, (24, 24, 24, 3), dtype=np.uint8))
    seen = []
    for workers, batch in ((1, 24), (3, 8)):
        found: dict[int, torch.Tensor] = {}
        with Loader(source, (random_view(),), batch_size=batch, seed=2, workers=workers) as loader:
            for item in itertools.islice(loader.batches(0), 24 // batch):
                found |= dict(zip(item.index_B.tolist(), item.views["global"].transpose(0, 1).clone(), strict=True))
        seen.append(found)
    assert seen[0].keys() == seen[1].keys() == set(range(24))
    assert all(torch.equal(seen[0][i], seen[1][i]) for i in range(24))


def test_threads_of_the_loader_leave_the_number_of_torch_threads_alone():
    before, later = torch.get_num_threads(), []
    with Loader(
        ArraySource(np.zeros((8, 24, 24, 3), np.uint8)), (random_view(),), batch_size=4, seed=0, workers=2
    ) as loader:
        next(iter(loader.batches(0)))
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert torch.get_num_threads() == before and later == [before]


@pytest.mark.parametrize("wrong", [{"magnitude": 27.0}, {"number": 0}, {"probability": 1.5}, {"spread": -1.0}])
def test_impossible_operations_are_refused(wrong):
    with pytest.raises(ConfigError, match="RandAugment"):
        Operations(**wrong)
