"""Images with boxes and masks in COCO's format: one annotation json, the images beside it in a folder or a zip.

Boxes are (x1, y1, x2, y2) in pixels, float32, x to the right. N objects.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage, DataError
from imprint.data.coco_images import ImageStore, find_images
from imprint.data.decode import decode
from imprint.data.sources import digest

Segmentation = list[list[float]] | dict[str, Any] | None


@dataclass(frozen=True)
class Objects:
    """What is annotated in an image.

    Attributes:
        boxes_N4: corners, clipped to the image.
        labels_N: int64 positions in `CocoData.classes`.
        crowd_N: bool: a region of many objects, which is neither learned nor counted.
        areas_N: float64, in square pixels, as the file says (else the box's).
        segmentations: per object polygons (lists of x, y, x, y, ...), a run-length encoding, or None.
    """

    boxes_N4: npt.NDArray[np.float32]
    labels_N: npt.NDArray[np.int64]
    crowd_N: npt.NDArray[np.bool_]
    areas_N: npt.NDArray[np.float64]
    segmentations: tuple[Segmentation, ...]

    def __len__(self) -> int:
        return len(self.labels_N)


class CocoData:
    """A COCO-format data set: image records, categories and objects, checked once.

    Categories may have any ids, with gaps; labels are their positions in order of id. Objects without area (degenerate
    boxes) are left out and counted in `dropped`. Images without objects stay.

    Args:
        path: the annotation json.
        images: folder or zip of the images; None looks beside the json (same folder, `images/`, a zip).

    Attributes:
        spec: path of the json.
        records: per image `(id, file name, height, width)`.
        category_ids: id of each label.
        classes: category names by label.
        objects: per image its `Objects`.
        dropped: objects without area that were left out.
        has_masks: whether every object that counts has a segmentation.

    Raises:
        DataError: for a missing or malformed file, with the place; ids that do not fit together; images not found.
    """

    channels = 3

    def __init__(self, path: str | Path, images: str | Path | None = None) -> None:
        self.path = Path(path)
        self.spec = str(path)
        content = self._load()
        self.records: list[tuple[int, str, int, int]] = [
            self._record(position, entry) for position, entry in enumerate(content["images"])
        ]
        if not self.records:
            raise DataError(f"{self.path}: it lists no images.")
        twice = _first_twice(record[0] for record in self.records)
        if twice is not None:
            raise DataError(f"{self.path}: two images have the id {twice}.")
        self.category_ids, self.classes = self._categories(content["categories"])
        self.dropped = 0
        self.objects = self._objects(content["annotations"])
        counted = [(s, c) for o in self.objects for s, c in zip(o.segmentations, o.crowd_N, strict=True)]
        self.has_masks = any(s is not None for s, _ in counted) and all(s is not None or c for s, c in counted)
        self.store: ImageStore = find_images(self.path, [record[1] for record in self.records], images)
        self._digest = digest(json.dumps([content["images"], content["annotations"], content["categories"]]))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def fingerprint(self) -> str:
        """Digest of the annotations and of names, sizes and times (zip: checksums) of the image files that are in."""
        names = [record[1] for record in self.records]
        return digest(self._digest, json.dumps([[name, self.store.mark(name)] for name in names]))

    def subset(self, rows: Iterable[int]) -> CocoData:
        """Return the data set with these images only, same categories."""
        part = object.__new__(CocoData)
        part.__dict__.update(self.__dict__)
        rows = list(rows)
        part.records = [self.records[i] for i in rows]
        part.objects = [self.objects[i] for i in rows]
        return part

    def aligned(self, other: CocoData) -> CocoData:
        """Return the data set with the labels of `other`, categories matched by name.

        Raises:
            DataError: naming the categories with objects that `other` lacks.
        """
        if other.classes == self.classes:
            return self
        position = {name: i for i, name in enumerate(other.classes)}
        present = sorted({int(label) for objects in self.objects for label in objects.labels_N})
        strangers = [self.classes[i] for i in present if self.classes[i] not in position]
        if strangers:
            raise DataError(
                f"{self.path}: {len(strangers)} of its categories are not in {other.path}: "
                f"{', '.join(map(repr, strangers[:5]))}{', ...' if len(strangers) > 5 else ''}. "
                "A detector finds only what it was trained on; give both files the same categories."
            )
        lookup = np.array([position.get(name, -1) for name in self.classes], dtype=np.int64)
        twin = self.subset(range(len(self)))
        twin.objects = [replace(o, labels_N=lookup[o.labels_N]) for o in self.objects]
        twin.classes, twin.category_ids = other.classes, other.category_ids
        return twin

    def read(self, i: int) -> npt.NDArray[np.uint8]:
        """Return image i as uint8 (H, W, 3); grey is repeated over the channels.

        Raises:
            DataError: for a file that cannot be read or is not of the size that the annotations say.
        """
        _, name, height, width = self.records[i]
        try:
            pixels = decode(self.store.read(name), channels=3)
        except (OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.store.where}: image '{name}' cannot be read ({error}).") from error
        except BadImage as error:
            raise DataError(f"{self.store.where}: image '{name}' cannot be decoded ({error}).") from error
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        if pixels.shape[:2] != (height, width):
            raise DataError(
                f"image '{name}' is {pixels.shape[1]} x {pixels.shape[0]} and {self.path} says {width} x {height}, so "
                "its boxes would be in the wrong places. Use the images that were annotated."
            )
        return pixels

    def _load(self) -> dict[str, Any]:
        if self.path.is_dir() or self.path.suffix.lower() != ".json":
            found = sorted(self.path.glob("*.json"))[:3] if self.path.is_dir() else []
            hint = f" That folder holds {', '.join(repr(str(p)) for p in found)}." if found else ""
            raise DataError(f"'{self.path}': detection takes a COCO annotation file (.json).{hint}")
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"'{self.path}' does not exist; give the path of a COCO annotation json.") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: it cannot be read as json ({error}).") from error
        missing = [k for k in ("images", "annotations", "categories") if not isinstance(_get(content, k), list)]
        if missing:
            raise DataError(
                f"{self.path}: not a COCO instances file, it has no list of {', '.join(missing)}. "
                "Its keys should be images, annotations and categories."
            )
        return dict(content)

    def _record(self, position: int, entry: Any) -> tuple[int, str, int, int]:
        try:
            record = int(entry["id"]), str(entry["file_name"]), int(entry["height"]), int(entry["width"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path}: image number {position} lacks id, file_name, height or width ({error!r})."
            ) from error
        if min(record[2:]) < 1:
            raise DataError(f"{self.path}: image '{record[1]}' has the size {record[3]} x {record[2]}.")
        return record

    def _categories(self, entries: list[Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        try:
            pairs = sorted((int(entry["id"]), str(entry["name"])) for entry in entries)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.path}: a category lacks id or name ({error!r}).") from error
        if not pairs:
            raise DataError(f"{self.path}: it lists no categories.")
        twice = _first_twice(pair[0] for pair in pairs)
        if twice is not None:
            raise DataError(f"{self.path}: two categories have the id {twice}.")
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)

    def _objects(self, annotations: list[Any]) -> list[Objects]:
        row = {record[0]: i for i, record in enumerate(self.records)}
        label = {category: i for i, category in enumerate(self.category_ids)}
        found: list[list[tuple[Any, ...]]] = [[] for _ in self.records]
        for position, entry in enumerate(annotations):
            where = f"{self.path}: annotation {_get(entry, 'id', f'number {position}')}"
            try:
                image, category = int(entry["image_id"]), int(entry["category_id"])
                x, y, w, h = (float(v) for v in entry["bbox"])
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{where} lacks image_id, category_id or a bbox of 4 numbers ({error!r}).") from error
            if image not in row:
                raise DataError(f"{where} belongs to image {image}, which is not listed.")
            if category not in label:
                raise DataError(f"{where} has category {category}, which is not listed.")
            if not np.isfinite([x, y, w, h]).all():
                raise DataError(f"{where} has the box {entry['bbox']}, which is not finite.")
            _, _, height, width = self.records[row[image]]
            box = (max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h))
            if box[2] <= box[0] or box[3] <= box[1]:
                self.dropped += 1
                continue
            area = float(_get(entry, "area", w * h))
            crowd = bool(_get(entry, "iscrowd", 0))
            found[row[image]].append((box, label[category], crowd, area, _segmentation(entry, where)))
        return [_objects_of(rows) for rows in found]


def _objects_of(rows: list[tuple[Any, ...]]) -> Objects:
    return Objects(
        boxes_N4=np.array([r[0] for r in rows], dtype=np.float32).reshape(-1, 4),
        labels_N=np.array([r[1] for r in rows], dtype=np.int64),
        crowd_N=np.array([r[2] for r in rows], dtype=np.bool_),
        areas_N=np.array([r[3] for r in rows], dtype=np.float64),
        segmentations=tuple(r[4] for r in rows),
    )


def _segmentation(entry: dict[str, Any], where: str) -> Segmentation:
    value = entry.get("segmentation")
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, dict):
        if "counts" not in value or len(_get(value, "size", ())) != 2:
            raise DataError(f"{where}: a run-length encoded mask needs 'counts' and 'size' [height, width].")
        return value
    if isinstance(value, list) and all(isinstance(part, list) for part in value):
        if any(len(part) % 2 for part in value):
            raise DataError(f"{where}: a polygon has an odd number of coordinates.")
        parts = [[float(v) for v in part] for part in value if len(part) >= 6]  # fewer than 3 corners enclose nothing
        return parts or None
    raise DataError(f"{where}: its segmentation is neither polygons nor a run-length encoding.")


def _get(mapping: Any, key: str, default: Any = None) -> Any:
    return mapping.get(key, default) if isinstance(mapping, dict) else default


def _first_twice(values: Iterable[int]) -> int | None:
    seen: set[int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
