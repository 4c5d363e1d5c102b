"""Predictions at the size of the masks, and the scores of one confusion matrix that streams over the images.

Shapes: N images, G heads, K classes, H x W pixels of a frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from imprint.data.mask_folders import MaskedImages
from imprint.evals.intervals import bootstrap
from imprint.evals.report import Metric
from imprint.evals.segmentation_frames import Tile, tiles_of
from imprint.evals.segmentation_labels import Labels, LabelTable, Scan
from imprint.evals.segmentation_maps import Sight
from imprint.evals.workspace import Workspace
from imprint.ops.confusion import class_accuracy, class_iou, confusion, mean_iou, pixel_accuracy, totals

Logits = Callable[[list[Tensor]], Tensor]
"""From maps (1, D_i, h_i, w_i) of a tile to logits (1, K, h, w)."""

BLOCK = 64
"""Images whose counts are remembered together."""


@torch.no_grad()
def predicted(parts: Sequence[tuple[Tile, Tensor]], size: tuple[int, int]) -> Tensor:
    """Return the class of every pixel (size) from the logits (1, K, h, w) of an image's tiles.

    A whole image's logits are upsampled bilinearly to the mask's size at once; overlapping windows are upsampled to
    their own size, averaged in the frame, and the average is brought to the mask's size.
    """
    first, logits = parts[0]
    if first.shape != first.frame:
        full = logits.new_zeros(1, logits.shape[1], *first.frame)
        count = logits.new_zeros(1, 1, *first.frame)
        for tile, part in parts:
            top, left, height, width = tile.box
            up = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
            full[:, :, top : top + height, left : left + width] += up
            count[:, :, top : top + height, left : left + width] += 1
        logits = full / count
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits[0].argmax(0)


def predictions(
    sight: Sight, source: MaskedImages, sizes: Sequence[tuple[int, int]], rows: Sequence[int], logits_of: Logits
) -> Iterator[tuple[int, Tensor]]:
    """Yield (image, its predicted classes (H, W) int64 at its own size) for some images of a source."""
    stream = sight.stream(source, tiles_of(sight.frames, sizes, rows))
    with torch.no_grad():
        for i, group in itertools.groupby(stream, key=lambda pair: pair[0].image):
            parts = [(tile, logits_of([x[None] for x in maps]).float()) for tile, maps in group]
            yield i, predicted(parts, sizes[i])


def score(
    sight: Sight,
    source: MaskedImages,
    found: Scan,
    table: LabelTable,
    logits_of: Logits,
    workspace: Workspace,
) -> tuple[Tensor, Tensor]:
    """Return the confusion matrix (K, K) of a source and the totals (N, 3, K) of its images; both int64.

    Counts of BLOCK images are remembered, so a killed evaluation goes on with the next ones.
    """
    classes = len(table)
    whole = torch.zeros(classes, classes, dtype=torch.int64)
    each: list[Tensor] = []
    for first in range(0, len(source), BLOCK):
        rows = range(first, min(first + BLOCK, len(source)))
        done = workspace.recall(f"scored-{first}")
        if done is None:
            block = torch.zeros_like(whole)
            singles = []
            for i, guess in predictions(sight, source, found.sizes, rows, logits_of):
                matrix = confusion(truth(source, table, i), guess.cpu(), classes)
                block += matrix
                singles.append(totals(matrix))
            done = {"matrix": block.tolist(), "images": torch.stack(singles).tolist()}
            workspace.remember(f"scored-{first}", done)
        whole += torch.tensor(done["matrix"], dtype=torch.int64)
        each.append(torch.tensor(done["images"], dtype=torch.int64))
    return whole, torch.cat(each)


def truth(source: MaskedImages, table: LabelTable, i: int) -> Tensor:
    """Return the labels (H, W) of image `i`."""
    labels: Labels = table.labels(source.mask(i))
    return torch.from_numpy(labels)


def metrics_of(
    matrix_KK: Tensor, images_N3K: Tensor, table: LabelTable, seed: int
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Return mIoU, pixel accuracy and mean class accuracy in percent, with bootstrap intervals over images; details."""
    classes = len(table)

    def bootstrapped(measure: Callable[[Tensor], Tensor]) -> Metric:
        def statistic(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return np.asarray(100.0 * measure(torch.from_numpy(sums).view(-1, 3, classes)).numpy())

        return bootstrap(images_N3K.flatten(1).numpy(), statistic, seed=seed)

    metrics = {
        "miou": bootstrapped(mean_iou),
        "pixel_accuracy": bootstrapped(pixel_accuracy),
        "mean_class_accuracy": bootstrapped(lambda sums: class_accuracy(sums).nanmean(-1)),
    }
    whole = totals(matrix_KK)
    iou, recall = 100.0 * class_iou(whole), 100.0 * class_accuracy(whole)
    share = whole[1].double() / whole[1].sum()
    per_class = {
        name: {
            "iou": _number(iou[k]), "accuracy": _number(recall[k]), "pixel_share": round(float(share[k]), 6),
        }
        for k, name in enumerate(table.names)
    }  # fmt: skip
    return metrics, {"per_class": per_class, "confusion": matrix_KK.tolist() if classes <= 64 else None}


def _number(value: Tensor) -> float | None:
    return None if torch.isnan(value) else round(float(value), 3)
