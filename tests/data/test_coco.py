"""The COCO reader: ids of any kind, images in folders and zips, and an error for everything that does not fit."""

import json
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from imprint.core.errors import DataError
from imprint.data.coco import CocoData


def annotation(i=1, image=7, category=90, bbox=(2, 3, 4, 5), **more):
    return {"id": i, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


def content(annotations=(), images=None):
    return {
        "images": images or [{"id": 7, "file_name": "a.png", "height": 10, "width": 12}],
        "categories": [{"id": 90, "name": "late"}, {"id": 3, "name": "early"}],
        "annotations": list(annotations),
    }


def write(folder, data, name="set.json", image=True):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(data))
    if image:
        cv2.imwrite(str(folder / "a.png"), np.arange(120, dtype=np.uint8).reshape(10, 12))
    return path


def test_categories_with_gaps_boxes_and_crowds(tmp_path):
    given = [
        annotation(1, bbox=(2, 3, 4, 5), area=11.0, iscrowd=0),
        annotation(2, category=3, bbox=(-3, 8, 100, 100), iscrowd=1),
        annotation(3, bbox=(5, 5, 0, 4)),
        annotation(4, bbox=(40, 5, 3, 4)),
    ]
    data = CocoData(write(tmp_path, content(given)))
    assert data.classes == ("early", "late") and data.category_ids == (3, 90) and data.dropped == 2
    objects = data.objects[0]
    np.testing.assert_array_equal(objects.boxes_N4, [[2, 3, 6, 8], [0, 8, 12, 10]])
    assert objects.labels_N.tolist() == [1, 0] and objects.crowd_N.tolist() == [False, True]
    assert objects.areas_N.tolist() == [11.0, 10000.0] and not data.has_masks
    grey = data.read(0)
    assert grey.shape == (10, 12, 3) and (grey[..., 0] == grey[..., 2]).all() and grey[0, 5, 1] == 5


def test_images_are_found_in_the_usual_places(tmp_path):
    write(tmp_path / "flat", content())
    for place in ("images/a.png", "set/a.png", "../val2017/a.png"):
        folder = tmp_path / place.replace("/", "_") / "annotations"
        name = "instances_val2017.json" if "val" in place else "set.json"
        path = write(folder, content(), name, image=False)
        target = folder / place
        target.parent.mkdir(parents=True)
        target.write_bytes((tmp_path / "flat" / "a.png").read_bytes())
        assert CocoData(path).read(0).shape == (10, 12, 3)
    path = write(tmp_path / "zipped", content(), image=False)
    with zipfile.ZipFile(tmp_path / "zipped" / "any.zip", "w") as archive:
        archive.write(tmp_path / "flat" / "a.png", "train/a.png")
    assert CocoData(path).read(0).shape == (10, 12, 3)
    other = write(tmp_path / "elsewhere", content(), image=False)
    assert CocoData(other, images=tmp_path / "flat").read(0).shape == (10, 12, 3)
    assert CocoData(other, images=tmp_path / "zipped" / "any.zip").read(0).shape == (10, 12, 3)


def test_content_decides_the_fingerprint(tmp_path):
    first = CocoData(write(tmp_path / "a", content([annotation()])))
    moved = Path(shutil.copytree(tmp_path / "a", tmp_path / "b"))  # times of files stay
    assert first.fingerprint == CocoData(moved / "set.json").fingerprint
    size = (moved / "a.png").stat().st_size
    (moved / "a.png").write_bytes(b"x" * size)  # other pixels, as many bytes
    assert first.fingerprint != CocoData(moved / "set.json").fingerprint
    assert first.fingerprint != CocoData(write(tmp_path / "c", content([annotation(bbox=(2, 3, 4, 6))]))).fingerprint
    assert first.fingerprint != first.subset([]).fingerprint and len(first.subset([0])) == 1


def test_labels_follow_the_names_of_another_file(tmp_path):
    train = CocoData(write(tmp_path / "a", content([annotation()])))
    swapped = content([annotation(category=1), annotation(2, category=2)])
    swapped["categories"] = [{"id": 1, "name": "late"}, {"id": 2, "name": "early"}]
    test = CocoData(write(tmp_path / "b", swapped)).aligned(train)
    assert test.classes == train.classes and test.objects[0].labels_N.tolist() == [1, 0]
    swapped["categories"][0]["name"] = "stranger"
    with pytest.raises(DataError, match="'stranger'"):
        CocoData(write(tmp_path / "c", swapped)).aligned(train)


BROKEN = [
    ({"images": []}, "no list of annotations, categories"),
    (content(images=[{"id": 1, "file_name": "a.png", "height": 10}]), "image number 0 lacks"),
    (content(images=[{"id": 1, "file_name": "a.png", "height": 0, "width": 3}]), "has the size 3 x 0"),
    (content(images=[{"id": 7, "file_name": n, "height": 9, "width": 9} for n in "ab"]), "two images have the id 7"),
    (content([annotation(image=8)]), "annotation 1 belongs to image 8, which is not listed"),
    (content([annotation(category=4)]), "category 4, which is not listed"),
    (content([annotation(bbox=(1, 2, 3))]), "bbox of 4 numbers"),
    (content([annotation(bbox=(1, 2, float("nan"), 3))]), "not finite"),
    (content([annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]])]), "odd number of coordinates"),
    (content([annotation(segmentation={"size": [10, 12]})]), "needs 'counts'"),
    (content([annotation(segmentation=[1, 2, 3])]), "neither polygons nor"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN)
def test_broken_files_say_where(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        CocoData(write(tmp_path, data))


def test_missing_files_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        CocoData(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"set.json"):
        CocoData(write(tmp_path, content()).parent)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as json"):
        CocoData(tmp_path / "bad.json")
    path = write(tmp_path / "x", content(), image=False)
    with pytest.raises(DataError, match=r"1 of 1 images are missing .* first 'a.png'. Say where they are with"):
        CocoData(path)
    with pytest.raises(DataError, match="no such folder or zip"):
        CocoData(path, images=tmp_path / "nowhere")


def test_an_image_of_another_size_or_damaged_is_refused(tmp_path):
    path = write(tmp_path, content(images=[{"id": 7, "file_name": "a.png", "height": 12, "width": 10}]))
    with pytest.raises(DataError, match="is 12 x 10 and .* says 10 x 12"):
        CocoData(path).read(0)
    (tmp_path / "a.png").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="'a.png' cannot be decoded"):
        CocoData(path).read(0)
