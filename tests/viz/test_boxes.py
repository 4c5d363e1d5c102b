"""Boxes and masks on images: the right pixels take the right colour, and nothing is drawn for nothing."""

import numpy as np

from imprint.viz.boxes import Drawn, detection_sheet, draw_objects, save_detections
from imprint.viz.colours import category, rgb
from imprint.viz.raster import GAP_COLOUR

GREY = np.full((60, 80, 3), 100, np.uint8)
NOTHING = Drawn(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])


def one(label=1):
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:50] = 1
    return Drawn(np.array([[10, 15, 70, 50]], np.float32), np.array([label]), ["<b>täg</b> 0.50"], [mask])


def test_box_mask_and_scale():
    drawn = draw_objects(GREY, one(), width=160)
    assert drawn.shape == (120, 160, 3) and GREY.max() == 100
    colour = np.array(rgb(category(1)))
    assert (drawn[60, 20] == colour).all() and (drawn[99, 100] == colour).all()  # left and lower side
    np.testing.assert_array_equal(drawn[60, 80], np.rint(0.55 * 100 + 0.45 * colour))  # inside the mask
    assert (drawn[90, 50] == 100).all() and (drawn[5, 5] == 100).all()  # inside the box only, and outside


def test_sheet_has_truth_left_and_what_was_found_right_even_if_nothing(tmp_path):
    sheet = detection_sheet([GREY, GREY], [one(), NOTHING], [NOTHING, one(2)], width=80)
    assert sheet.shape == (124, 164, 3)
    assert (sheet[:60, 84:] == 100).all() and (sheet[64:, :80] == 100).all() and (sheet[:, 80:84] == GAP_COLOUR).all()
    assert not (sheet[:60, :80] == 100).all() and not (sheet[64:, 84:] == 100).all()
    assert save_detections([GREY], [one()], [NOTHING], tmp_path / "a" / "b.png").is_file()
