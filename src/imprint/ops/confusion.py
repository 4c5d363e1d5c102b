"""Segmentation scores from one confusion matrix, counted as the pixels stream by.

Shapes: K classes, leading dimensions `...` (images, bootstrap samples). Counts are int64 and exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.core.errors import DataError

IGNORED = -1
"""The label of pixels that never count."""


def confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Return M (K, K) int64: M[t, p] pixels of class t were called p; pixels whose truth is `IGNORED` are left out.

    Args:
        truth: integer labels of any shape, `IGNORED` or in [0, K).
        predicted: integer labels of the same shape, in [0, K) wherever truth is not ignored.
        classes: K.

    Raises:
        DataError: for shapes that differ, or labels outside the range.
    """
    if truth.shape != predicted.shape:
        raise DataError(f"truth {tuple(truth.shape)} and prediction {tuple(predicted.shape)} differ in shape.")
    counts = truth != IGNORED
    t, p = truth[counts].long(), predicted[counts].long()
    if t.numel() and (int(torch.minimum(t.min(), p.min())) < 0 or int(torch.maximum(t.max(), p.max())) >= classes):
        raise DataError(f"labels must lie in [0, {classes}) or be {IGNORED} (ignored).")
    return torch.bincount(t * classes + p, minlength=classes * classes).view(classes, classes)


def totals(matrix: Tensor) -> Tensor:
    """Return (..., 3, K): per class the pixels hit, the pixels of truth and the pixels predicted, of (..., K, K)."""
    return torch.stack([matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1), matrix.sum(-2)], -2)


def class_iou(totals_3K: Tensor) -> Tensor:
    """Return hit / (truth + predicted - hit) per class (..., K), float64; NaN for classes in neither.

    The Jaccard index of PASCAL VOC's segmentation task (Everingham et al. 2015, Sec. 3.3).
    """
    hit, truth, predicted = totals_3K.double().unbind(-2)
    return hit / (truth + predicted - hit)


def mean_iou(totals_3K: Tensor) -> Tensor:
    """Return the mean of `class_iou` over the classes that occur in truth or prediction, (...), float64."""
    return class_iou(totals_3K).nanmean(-1)


def pixel_accuracy(totals_3K: Tensor) -> Tensor:
    """Return the share of pixels whose class is right, (...), float64."""
    hit, truth, _ = totals_3K.double().unbind(-2)
    return hit.sum(-1) / truth.sum(-1)


def class_accuracy(totals_3K: Tensor) -> Tensor:
    """Return hit / truth per class (..., K), float64; NaN for classes without a pixel of truth."""
    hit, truth, _ = totals_3K.double().unbind(-2)
    return hit / truth
