"""Segmentation pictures: fixed colours, grey where nothing counts, names in the legend."""

import numpy as np

from imprint.viz.segments import IGNORED_COLOUR, legend, overlaid, painted, palette, save_segments, segment_sheet


def test_a_class_keeps_its_colour_and_all_differ():
    assert palette(40).shape == (40, 3) and len(np.unique(palette(40), axis=0)) == 40
    np.testing.assert_array_equal(palette(3), palette(40)[:3])


def test_labels_become_colours():
    labels = np.array([[0, 2], [-1, 1]], dtype=np.int16)
    out = painted(labels, 3)
    np.testing.assert_array_equal(out[[0, 0, 1], [0, 1, 1]], palette(3)[[0, 2, 1]])
    assert tuple(out[1, 0]) == IGNORED_COLOUR
    image = np.full((2, 2, 3), 100, np.uint8)
    tinted = overlaid(image, labels, 3, 0.5)
    np.testing.assert_array_equal(tinted[1, 0], image[1, 0])
    np.testing.assert_allclose(tinted[0, 0], (image[0, 0] + palette(3)[0].astype(float)) / 2, atol=0.51)


def test_the_sheet_has_a_row_per_image_and_every_name(tmp_path):
    image = np.zeros((30, 60, 3), np.uint8)
    truth = np.zeros((30, 60), np.int16)
    truth[:, 30:] = 1
    names = ["sky", "a class with a very long name that has to be cut", "straße <b>"]
    one = segment_sheet([image], [truth], [truth], names, side=60)
    two = segment_sheet([image] * 2, [truth] * 2, [1 - truth] * 2, names, side=60)
    assert one.dtype == np.uint8 and two.shape[1] == one.shape[1] and two.shape[0] == one.shape[0] + 34
    row = one[24 + 15]  # below the headings: image, truth, prediction
    assert (row[0] == 0).all() and (row[64 + 5] == palette(3)[0]).all() and (row[64 + 45] == palette(3)[1]).all()
    assert (two[24 + 34 + 15][128 + 5] == palette(3)[1]).all()
    strip = legend(names, 400)
    assert all((strip == colour).all(2).sum() > 50 for colour in palette(3)) and (strip.sum(2) < 300).sum() > 100
    assert legend(names, 100).shape[0] > strip.shape[0]
    assert save_segments([image], [truth], [truth], names, tmp_path / "s.png").stat().st_size > 500
