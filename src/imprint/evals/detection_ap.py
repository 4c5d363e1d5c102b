"""COCO's average precision by pycocotools, with intervals over images.

Shapes: T IoU thresholds, D detections of a category, I images, R resamplings, P = 101 recall points.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from imprint.core.rng import seed_of
from imprint.data.coco import CocoData
from imprint.evals.detection_views import coco_tools, encoded
from imprint.evals.report import Metric

Floats = npt.NDArray[np.float64]

STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""The first six of COCOeval's twelve numbers, in its order."""

TABLE = 4_000_000
"""Numbers per table while resampling."""


def truth_of(data: CocoData, masks: bool) -> Any:
    """Return pycocotools' COCO of the data set; images and categories are numbered by position.

    With `masks`, every object's mask is encoded once and its own area is kept.
    """
    api = coco_tools()[1]()
    annotations: list[dict[str, Any]] = []
    for i, (objects, record) in enumerate(zip(data.objects, data.records, strict=True)):
        for n in range(len(objects)):
            x1, y1, x2, y2 = (float(v) for v in objects.boxes_N4[n])
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": int(objects.labels_N[n]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(objects.areas_N[n]),
                "iscrowd": int(objects.crowd_N[n]),
            }
            if masks:
                if objects.segmentations[n] is None:  # a crowd that has a box only
                    polygon = [[x1, y1, x2, y1, x2, y2, x1, y2]]
                    entry["segmentation"] = encoded(polygon, record[2:], record[1])
                else:
                    entry["segmentation"] = encoded(objects.segmentations[n], record[2:], record[1])
            annotations.append(entry)
    api.dataset = {
        "info": {},
        "images": [{"id": i, "height": h, "width": w} for i, (_, _, h, w) in enumerate(data.records)],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(data.classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def average_precision(
    truth: Any, results: Sequence[dict[str, Any]], kind: str, *, resamplings: int = 0, seed: int = 0
) -> tuple[dict[str, Metric], dict[str, float]]:
    """Return AP in percent by COCO's rules, and of every category.

    AP is the mean over categories and IoU thresholds 0.50, 0.55, ..., 0.95 of the precision interpolated at 101
    recalls (pycocotools, with at most 100 detections per image). `ap50`, `ap75` are at one threshold; `ap_small`
    (area below 32^2 pixels), `ap_medium` and `ap_large` (above 96^2) are left out where no object is of that size.

    Args:
        truth: from `truth_of`.
        results: detections: `image_id`, `category_id`, `score`, and `bbox` (x, y, w, h) or `segmentation`.
        kind: `bbox` or `segm`.
        resamplings: of images with replacement, for the 95 % percentile interval of `ap`; 0 for none.
        seed: of the resampling.

    Returns:
        Metrics by name, and AP by category name for categories with objects.
    """
    images = len(truth.dataset["images"])
    names = {c["id"]: c["name"] for c in truth.dataset["categories"]}
    present = sorted({a["category_id"] for a in truth.dataset["annotations"] if not a["iscrowd"]})
    if not results:
        zero = {name: Metric(value=0.0, n=images) for name in _occurring(truth)}
        return zero, {names[k]: 0.0 for k in present}
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes([dict(result) for result in results])
        judge = coco_tools()[2](truth, found, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    stats = {name: 100.0 * float(judge.stats[i]) for i, name in enumerate(STATS)}
    low = high = None
    if resamplings and images > 1:
        drawn = resampled_ap(judge, resamplings, seed)
        low, high = (float(v) for v in np.percentile(100.0 * drawn, [2.5, 97.5])) if len(drawn) else (None, None)
    metrics = {name: Metric(value=value, n=images) for name, value in stats.items() if value >= 0}
    if "ap" in metrics:
        metrics["ap"] = Metric(value=stats["ap"], low=low, high=high, n=images)
    precision_TPK = judge.eval["precision"][:, :, :, 0, -1]
    per_class = {names[k]: 100.0 * float(precision_TPK[:, :, judge.params.catIds.index(k)].mean()) for k in present}
    return metrics, per_class


def resampled_ap(judge: Any, resamplings: int, seed: int) -> Floats:
    """Return AP (a share) on images drawn with replacement, one number per resampling that has any object.

    The matches of a COCOeval that ran `evaluate` are kept; every image counts as often as it was drawn, so that no
    image is matched twice.
    """
    images = len(judge.params.imgIds)
    rng = np.random.default_rng(seed_of(seed, "images"))
    weights_RI = rng.multinomial(images, np.full(images, 1.0 / images), size=resamplings)
    return weighted_ap(judge, weights_RI.astype(np.float64))


def weighted_ap(judge: Any, weights_RI: npt.ArrayLike) -> Floats:
    """Return AP (a share) where image i counts weights_RI[r, i] times; rows without any object are left out."""
    weights = np.asarray(weights_RI, dtype=np.float64)
    images, sizes = len(judge.params.imgIds), len(judge.params.areaRng)
    total_R, count_R = np.zeros(len(weights)), np.zeros(len(weights))
    for k in range(len(judge.params.catIds)):
        start = k * sizes * images  # evalImgs runs over categories, sizes (the first is all), images
        found = [(i, judge.evalImgs[start + i]) for i in range(images)]
        found = [(i, e) for i, e in found if e is not None]
        objects_I = np.zeros(images)
        for i, e in found:
            objects_I[i] = np.count_nonzero(np.asarray(e["gtIgnore"]) == 0)
        objects_R = weights @ objects_I
        rows = np.flatnonzero(objects_R > 0)
        if not len(rows):
            continue
        count_R[rows] += 1
        scores_D = np.concatenate([np.asarray(e["dtScores"], dtype=np.float64) for _, e in found])
        if not len(scores_D):
            continue
        order_D = np.argsort(-scores_D, kind="mergesort")
        image_D = np.concatenate([np.full(len(e["dtScores"]), i) for i, e in found])[order_D]
        hit_TD = np.concatenate([np.asarray(e["dtMatches"]) for _, e in found], axis=1)[:, order_D] != 0
        counts_TD = np.concatenate([np.asarray(e["dtIgnore"]) for _, e in found], axis=1)[:, order_D] == 0
        step = max(1, TABLE // hit_TD.size)
        for part in np.split(rows, range(step, len(rows), step)):
            weight_R1D = weights[part][:, image_D][:, None]
            total_R[part] += _interpolated(
                np.cumsum(weight_R1D * (hit_TD & counts_TD), -1),
                np.cumsum(weight_R1D * (~hit_TD & counts_TD), -1),
                objects_R[part],
                np.asarray(judge.params.recThrs),
            )
    return total_R[count_R > 0] / count_R[count_R > 0]


def _interpolated(true_RTD: Floats, false_RTD: Floats, objects_R: Floats, recalls_P: Floats) -> Floats:
    """Return the mean over thresholds and recall points of the best precision at that recall or above, per row."""
    recall_RTD = true_RTD / objects_R[:, None, None]
    precision_RTD = true_RTD / np.maximum(true_RTD + false_RTD, np.spacing(1.0))
    best_RTD = np.maximum.accumulate(precision_RTD[..., ::-1], -1)[..., ::-1]
    wanted = np.ascontiguousarray(np.broadcast_to(recalls_P, (*recall_RTD.shape[:2], len(recalls_P))))
    at_RTP = torch.searchsorted(torch.from_numpy(np.ascontiguousarray(recall_RTD)), torch.from_numpy(wanted)).numpy()
    padded = np.concatenate([best_RTD, np.zeros_like(best_RTD[..., :1])], -1)
    mean: Floats = np.take_along_axis(padded, at_RTP, -1).mean((1, 2))
    return mean


def _occurring(truth: Any) -> list[str]:
    """Return the names of the numbers that some object counts in."""
    areas = np.array([a["area"] for a in truth.dataset["annotations"] if not a["iscrowd"]])
    if not len(areas):
        return []
    sizes = {"ap_small": areas < 32**2, "ap_medium": (areas >= 32**2) & (areas <= 96**2), "ap_large": areas > 96**2}
    return ["ap", "ap50", "ap75", *(name for name, fits in sizes.items() if fits.any())]
