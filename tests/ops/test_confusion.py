"""Segmentation scores: equal to counting pixel by pixel, and ignored pixels never count."""

import numpy as np
import pytest
import torch

from imprint.core.errors import DataError
from imprint.ops.confusion import IGNORED, class_accuracy, class_iou, confusion, mean_iou, pixel_accuracy, totals


def naive(truth, guess, classes):
    """IoU per class, pixel accuracy and class accuracies by loops over pixels."""
    hit, union, count = [0] * classes, [0] * classes, [0] * classes
    right = total = 0
    for t, p in zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True):
        if t == IGNORED:
            continue
        total += 1
        right += t == p
        count[t] += 1
        hit[t] += t == p
        for k in {t, p}:
            union[k] += 1
    iou = [h / u if u else np.nan for h, u in zip(hit, union, strict=True)]
    return iou, right / total, [h / n if n else np.nan for h, n in zip(hit, count, strict=True)]


@pytest.mark.parametrize("classes", [2, 7])
def test_scores_equal_a_loop_over_pixels(classes):
    rng = np.random.default_rng(classes)
    truth = rng.integers(-1, classes - (classes > 2), (3, 17, 13))  # the last of seven classes never occurs in truth
    guess = np.where(
        rng.random(truth.shape) < 0.5, truth.clip(0), rng.integers(0, classes - (classes > 2), truth.shape)
    )
    matrix = sum(
        confusion(torch.from_numpy(t), torch.from_numpy(g), classes) for t, g in zip(truth, guess, strict=True)
    )
    iou, accuracy, recalls = naive(truth, guess, classes)
    sums = totals(matrix)
    np.testing.assert_array_equal(class_iou(sums).numpy(), iou)
    assert float(pixel_accuracy(sums)) == accuracy and float(mean_iou(sums)) == pytest.approx(
        np.nanmean(iou), abs=1e-15
    )
    np.testing.assert_array_equal(class_accuracy(sums).numpy(), recalls)
    assert torch.equal(matrix, confusion(torch.from_numpy(truth), torch.from_numpy(guess), classes))


def test_ignored_pixels_never_count():
    truth = torch.tensor([[0, 1, IGNORED, IGNORED]], dtype=torch.int16)
    for beyond in (0, 1, 99):  # not even what is predicted there
        guess = torch.tensor([[0, 1, beyond, 1]])
        assert confusion(truth, guess, 2).tolist() == [[1, 0], [0, 1]]
    assert confusion(torch.full((2, 2), IGNORED), torch.zeros(2, 2), 3).sum() == 0


def test_a_class_predicted_and_never_true_counts_as_zero():
    sums = totals(confusion(torch.tensor([0, 0]), torch.tensor([0, 2]), 4))
    assert class_iou(sums)[2] == 0 and torch.isnan(class_iou(sums)[[1, 3]]).all() and float(mean_iou(sums)) == 0.25


def test_labels_outside_the_range_are_refused():
    with pytest.raises(DataError, match=r"\[0, 2\)"):
        confusion(torch.tensor([0, 2]), torch.tensor([0, 1]), 2)
    with pytest.raises(DataError, match=r"\[0, 2\)"):
        confusion(torch.tensor([0, -2]), torch.tensor([0, 1]), 2)
    with pytest.raises(DataError, match="differ in shape"):
        confusion(torch.zeros(2, 2), torch.zeros(4), 2)
