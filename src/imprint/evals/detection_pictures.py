"""What a detector found in some test images, beside what is annotated there."""

from __future__ import annotations

from typing import Any

import numpy as np

from imprint.data.coco import CocoData
from imprint.data.sources import spread
from imprint.evals.detection_views import decoded
from imprint.evals.report import Figure
from imprint.viz.boxes import Drawn, detection_sheet


def figure(test: CocoData, results: list[dict[str, Any]], count: int, least: float) -> tuple[Figure, ...]:
    """Return one figure of `count` test images spread over those with objects; nothing for a count of 0.

    Args:
        test: the images.
        results: all detections (`detection_training.detect`).
        count: rows of the figure.
        least: detections with a lower score are not drawn.
    """
    candidates = [i for i, objects in enumerate(test.objects) if len(objects)]
    rows = [candidates[i] for i in spread(len(candidates), count)]
    if not rows:
        return ()
    by_image: dict[int, list[dict[str, Any]]] = {i: [] for i in rows}
    for result in results:
        if result["image_id"] in by_image and result["score"] >= least:
            by_image[result["image_id"]].append(result)
    seen = sum(map(len, by_image.values()))
    picture = detection_sheet(
        [test.read(i) for i in rows], [annotated(test, i) for i in rows], [found(test, i, by_image[i]) for i in rows]
    )
    caption = (
        f"Left: what is annotated. Right: the {seen} detections with a score of {least:g} or more"
        f"{', none' if seen == 0 else ''}; {len(rows)} test images spread over the file."
    )
    return (Figure(name="detections", caption=caption, picture=picture),)


def annotated(data: CocoData, i: int) -> Drawn:
    """Return the objects of image i for drawing; crowds are named so."""
    objects, (_, name, height, width) = data.objects[i], data.records[i]
    captions = [
        data.classes[label] + (" (crowd)" if crowd else "")
        for label, crowd in zip(objects.labels_N, objects.crowd_N, strict=True)
    ]
    masks = []
    if data.has_masks:
        blank = np.zeros((height, width), np.uint8)
        masks = [blank if s is None else decoded(s, (height, width), name) for s in objects.segmentations]
    return Drawn(objects.boxes_N4, objects.labels_N, captions, masks)


def found(data: CocoData, i: int, results: list[dict[str, Any]]) -> Drawn:
    """Return the detections of image i for drawing, captioned with class and score."""
    _, name, height, width = data.records[i]
    boxes = np.array([r["bbox"] for r in results], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Drawn(
        boxes,
        np.array([r["category_id"] for r in results], dtype=np.int64),
        [f"{data.classes[r['category_id']]} {r['score']:.2f}" for r in results],
        [decoded(r["segmentation"], (height, width), name) for r in results if "segmentation" in r],
    )
