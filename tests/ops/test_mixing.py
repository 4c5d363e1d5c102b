"""Mixup, CutMix and label smoothing."""

import pytest
import torch

from imprint.ops.mixing import cutmix, mixup, smoothed_one_hot


def test_smoothed_targets_sum_to_one():
    targets = smoothed_one_hot(torch.tensor([2, 0]), 4, 0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert torch.equal(smoothed_one_hot(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


def test_mixup_is_the_convex_combination():
    x, y = torch.rand(3, 1, 4, 4), smoothed_one_hot(torch.tensor([0, 1, 2]), 3, 0.0)
    partner = torch.tensor([2, 0, 1])
    images, targets = mixup(x, y, partner, 0.3)
    torch.testing.assert_close(images, 0.3 * x + 0.7 * x[partner])
    torch.testing.assert_close(targets, 0.3 * y + 0.7 * y[partner])


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.9), (0.99, 0.0)])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_cutmix_counts_the_pixels_it_took(centre, share):
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 16, 16).clone()  # image 0 is all zeros, image 1 all ones
    y = smoothed_one_hot(torch.tensor([0, 1]), 2, 0.0)
    images, targets = cutmix(x, y, torch.tensor([1, 0]), share, centre)
    taken = images[0].mean()
    torch.testing.assert_close(targets[0], torch.stack([1 - taken, taken]))
    torch.testing.assert_close(images[1], 1 - images[0])
    if share == 1.0:
        assert torch.equal(images, x)
    if centre == (0.5, 0.5) and share == 0.25:
        assert int(images[0].sum()) == 14 * 14 or int(images[0].sum()) == 12 * 12
    assert set(images.unique().tolist()) <= {0.0, 1.0}
