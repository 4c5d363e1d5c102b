"""Images with masks: every layout finds its pairs, stored labels come through unchanged, and gaps are named."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import BadImage, DataError
from imprint.data.mask_folders import decode_mask, open_masks

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 5, (6, 8), dtype=np.uint8)


def png(array, mode=None, **more):
    image = Image.fromarray(array)
    if mode == "P":
        image = Image.fromarray(array, "P") if array.ndim == 2 else image.convert("P")
        image.putpalette([v for k in range(256) for v in (k, 255 - k, 7 * k % 256)])
    file = io.BytesIO()
    image.save(file, more.get("format", "PNG"))
    return file.getvalue()


def write(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def pairs(folder, images, masks, names=("a", "b"), end=".png"):
    found = {f"{folder}{images}/{name}.jpg": png(PIXELS, format="JPEG") for name in names}
    return found | {f"{folder}{masks}/{name}{end}": png(LABELS) for name in names}


VOC = pairs("", "JPEGImages", "SegmentationClass", "abc") | {
    "ImageSets/Segmentation/train.txt": b"c\na\n",
    "ImageSets/Segmentation/val.txt": b"b\n",
}


@pytest.mark.parametrize(
    ("files", "inside", "wanted"),
    [
        (pairs("", "images", "masks"), "", ["images/a.jpg", "images/b.jpg"]),
        (pairs("", "imgs", "labels", end="_L.png"), "", ["imgs/a.jpg", "imgs/b.jpg"]),
        (pairs("set/", "images", "annotations"), "", ["set/images/a.jpg", "set/images/b.jpg"]),
        (pairs("", "images/t", "annotations/t"), "t", ["images/t/a.jpg", "images/t/b.jpg"]),
        (pairs("", "images", "masks", names=("x/a", "y/a")), "", ["images/x/a.jpg", "images/y/a.jpg"]),
        (pairs("", "train", "trainannot"), "train", ["train/a.jpg", "train/b.jpg"]),
        (pairs("train/", "images", "masks"), "train", ["train/images/a.jpg", "train/images/b.jpg"]),
        (VOC, "train", ["JPEGImages/c.jpg", "JPEGImages/a.jpg"]),
        (VOC, "val", ["JPEGImages/b.jpg"]),
    ],
)  # fmt: skip
def test_layouts_of_folders_and_zips(tmp_path, files, inside, wanted):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    folder = write(tmp_path / "set", files)
    behind = f":{inside}" if inside else ""
    for spec in (f"{folder}{behind}", f"{tmp_path}/set.zip{behind}"):
        source = open_masks(spec)
        assert [source.name(i) for i in range(len(source))] == wanted
        assert source.image(0).shape == (6, 8, 3) and source.size(0) == (6, 8)
        np.testing.assert_array_equal(source.mask(0), LABELS)


def test_a_folder_finds_its_sibling(tmp_path):
    write(tmp_path, pairs("", "train", "trainannot") | pairs("", "images", "masks"))
    assert len(open_masks(tmp_path / "train")) == 2
    assert open_masks(tmp_path / "images").pairs[0].mask == "masks/a.png"
    joined = open_masks((tmp_path / "train", tmp_path / "images"))
    assert len(joined) == 4 and joined.mask(3).shape == (6, 8)


def test_masks_of_every_kind_come_through_unchanged():
    np.testing.assert_array_equal(decode_mask(png(LABELS)), LABELS)
    np.testing.assert_array_equal(decode_mask(png(LABELS, "P")), LABELS)  # indices, not the palette's colours
    np.testing.assert_array_equal(decode_mask(png(PIXELS)), PIXELS)
    wide = LABELS.astype(np.uint16) * 300
    np.testing.assert_array_equal(decode_mask(png(wide)), wide)
    np.testing.assert_array_equal(decode_mask(png(LABELS > 2)), (LABELS > 2).astype(np.uint8))
    alpha = np.dstack([PIXELS, np.full((6, 8), 255, np.uint8)])
    np.testing.assert_array_equal(decode_mask(png(alpha)), PIXELS)
    file = io.BytesIO()
    np.save(file, LABELS.astype(np.int64))
    np.testing.assert_array_equal(decode_mask(file.getvalue()), LABELS)
    with pytest.raises(BadImage, match="JPEG changes label values"):
        decode_mask(png(LABELS, format="JPEG"))


def test_the_fingerprint_follows_the_content(tmp_path):
    files = pairs("", "images", "masks")
    one = open_masks(write(tmp_path / "one", files)).fingerprint
    assert one == open_masks(tmp_path / "one").fingerprint != open_masks(tmp_path / "one", "palette").fingerprint
    changed = write(tmp_path / "one", {"masks/a.png": png(LABELS.T.copy())})
    assert open_masks(changed).fingerprint != one


def test_what_is_missing_is_named(tmp_path):
    files = pairs("", "images", "masks")
    del files["masks/b.png"]
    with pytest.raises(DataError, match=r"1 of 2 images have no mask in 'masks/'; the first is 'images/b.jpg'"):
        open_masks(write(tmp_path / "gap", files))
    with pytest.raises(DataError, match="lossy compression"):
        open_masks(write(tmp_path / "lossy", files | {"masks/b.jpg": png(LABELS, format="JPEG")}))
    with pytest.raises(DataError, match="does not exist"):
        open_masks(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images with masks"):
        open_masks(write(tmp_path / "bare", {"a.png": png(PIXELS)}))
    voc = write(tmp_path / "voc", VOC)
    with pytest.raises(DataError, match="the lists train, val"):
        open_masks(voc)
    with pytest.raises(DataError, match=r"such as '.*voc:train'"):
        open_masks(f"{voc}:trian")
    write(voc, {"ImageSets/Segmentation/train.txt": b"a\nz\n"})
    with pytest.raises(DataError, match="'z', has no image"):
        open_masks(f"{voc}:train")
    damaged = open_masks(write(tmp_path / "damaged", pairs("", "images", "masks") | {"masks/a.png": png(LABELS)[:40]}))
    with pytest.raises(DataError, match="the mask 'masks/a.png' cannot be read"):
        damaged.mask(0)
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(DataError, match="as a zip"):
        open_masks(tmp_path / "no.zip")
