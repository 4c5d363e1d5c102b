"""Class tables: from values, palettes and names; what does not fit is named."""

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import ConfigError, DataError
from imprint.data.mask_folders import open_masks
from imprint.evals.segmentation_labels import check, label_table, read_classes, read_palette, scan

COLOURS = np.array([(90, 90, 90), (220, 60, 40), (40, 90, 220), (60, 200, 80)], dtype=np.uint8)


def masks(folder, *arrays, sizes=None):
    """Write masks, with grey images of their sizes, and open them."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        height, width = sizes[i] if sizes else array.shape[:2]
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(array).save(folder / "masks" / f"{i}.png")
    return open_masks(folder)


def blocks(*values):
    """Return a mask of one 4 x 4 block per value."""
    array = np.repeat(np.repeat(np.array(values)[None], 4, 0), 4, 1)
    return array.astype(np.uint8 if array.max() < 256 else np.uint16)


def test_values_become_classes_and_ignored_ones_do_not_count(tmp_path):
    source = masks(tmp_path, blocks(0, 3, 9), blocks(3, 255))
    found = scan(source)
    assert found.values.tolist() == [0, 3, 9, 255] and found.pixels.tolist() == [16, 32, 16, 16]
    assert found.first.tolist() == [0, 0, 0, 1] and found.sizes == ((4, 12), (4, 8))
    table = label_table(source, found, ignore=(255, 0))
    assert table.values == (3, 9) and table.names == ("label 3", "label 9")
    assert np.unique(table.labels(source.mask(0))).tolist() == [-1, 0, 1]
    assert table.labels(source.mask(1))[0].tolist() == [0] * 4 + [-1] * 4


def test_names_number_classes_that_no_mask_shows(tmp_path):
    source = masks(tmp_path / "m", blocks(1, 3))
    names = tmp_path / "names.txt"
    names.write_text("void\nroad\n\ntree\ncar\n", encoding="utf-8")
    table = label_table(source, scan(source), classes=str(names), ignore=(255,))
    assert table.names == ("void", "road", "tree", "car") and table.labels(source.mask(0))[0, ::4].tolist() == [1, 3]
    names.write_text(
        "road\ntree\ncar\n", encoding="utf-8"
    )  # the ignored first label is left out, as ADE20K's list does
    table = label_table(source, scan(source), classes=str(names), ignore=(0,))
    assert dict(zip(table.names, table.values, strict=True)) == {"road": 1, "tree": 2, "car": 3}
    names.write_text("3 car\n1: road\n", encoding="utf-8")
    assert read_classes(str(names), set()) == {3: "car", 1: "road"}


def test_colours_by_palette_or_by_what_occurs(tmp_path):
    source = masks(tmp_path / "c", COLOURS[blocks(0, 1, 2)], COLOURS[blocks(3, 0)])
    found = scan(source)
    table = label_table(source, found)
    assert found.colours and len(table) == 4 and set(table.names) == {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in COLOURS}
    text = "220 60 40 disc\n#285adc, square\n60,200,80\n5a5a5a ground\n"
    (tmp_path / "palette.txt").write_text(text, encoding="utf-8")
    table = label_table(source, found, palette=str(tmp_path / "palette.txt"))
    assert table.names == ("disc", "square", "#3cc850", "ground")
    wanted = np.argmax([(source.mask(0) == c).all(2) for c in COLOURS[[1, 2, 3, 0]]], axis=0)
    np.testing.assert_array_equal(table.labels(source.mask(0)), wanted)
    table = label_table(source, found, palette=str(tmp_path / "palette.txt"), ignore=(3,))
    assert (
        table.names == ("disc", "square", "#3cc850")
        and (table.labels(source.mask(0)) == -1).sum() == (wanted == 3).sum()
    )


def test_blended_colours_are_refused(tmp_path):
    red, blue = np.zeros((8, 16, 3), np.uint8), None
    red[:, :8, 0], red[:, 8:, 2] = 200, 200
    blue = np.asarray(Image.fromarray(red).rotate(20, Image.Resampling.BILINEAR))
    source = masks(tmp_path / "b", blue)
    with pytest.raises(DataError, match=r"(?s)never fill a 3 x 3 block.*masks/0.png.*--palette"):
        label_table(source, scan(source))
    (tmp_path / "p.txt").write_text("200 0 0 red\n0 0 200 blue\n0 0 0 black\n", encoding="utf-8")
    with pytest.raises(DataError, match="colours that are no class.*nearest neighbour"):
        label_table(source, scan(source), palette=str(tmp_path / "p.txt"))


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(DataError, match="'images/0.png' has 8 x 5 pixels and its mask 'masks/0.png' 12 x 4"):
        scan(masks(tmp_path / "sizes", blocks(0, 1, 2), sizes=[(5, 8)]))
    with pytest.raises(DataError, match="store all masks alike"):
        scan(masks(tmp_path / "kinds", blocks(0, 1), np.zeros((4, 4, 3), np.uint8)))
    train = masks(tmp_path / "train", blocks(0, 1, 2))
    found = scan(train)
    (tmp_path / "two.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match="has label 2, which is no class: known are 0, 1, .*--ignore-label 255 2"):
        label_table(train, found, classes=str(tmp_path / "two.txt"), ignore=(255,))
    table = label_table(train, found, ignore=(255,))
    test = masks(tmp_path / "test", blocks(0, 7))
    with pytest.raises(DataError, match="the test mask 'masks/0.png' has label 7"):
        check(test, scan(test), table, "test", found)
    (tmp_path / "three.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    named = label_table(train, found, classes=str(tmp_path / "three.txt"), ignore=(255,))
    test = masks(tmp_path / "unseen", blocks(0, 3))
    with pytest.raises(DataError, match="1 classes of the test masks never occur in the training masks: 'd'"):
        check(test, scan(test), named, "test", found)
    binary = masks(tmp_path / "binary", blocks(0, 255))
    with pytest.raises(DataError, match="one class.*--ignore-label -1"):
        label_table(binary, scan(binary), ignore=(255,))
    assert label_table(binary, scan(binary), ignore=(-1,)).values == (0, 255)
    with pytest.raises(ConfigError, match="store label values"):
        (tmp_path / "p.txt").write_text("0 0 0 a\n", encoding="utf-8")
        label_table(train, found, palette=str(tmp_path / "p.txt"))


def test_palette_files_are_read_strictly(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("0 0 300 x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 1: '0 0 300 x' is no colour"):
        read_palette(str(path))
    path.write_text("0 0 1 a\n\n0 0 1 b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="twice"):
        read_palette(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_palette(str(tmp_path / "none"))
