"""RandAugment and random erasing of a batch: drawn by sample, at the stated rates, on both depths."""

import numpy as np
import torch

from imprint.data.batch import Normalise
from imprint.data.batch_augment import draw_operations, draw_rectangles, erased, rand_augmented
from imprint.ops.rand_augment import OPERATIONS


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
