"""The search page: escaped, complete, and self-contained; thumbnails of what cannot be read are grey."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imprint.data.arrays import ArraySource
from imprint.data.filelist import open_list
from imprint.viz.search_page import Found, save_search_page, search_page, search_sheet, thumbnails

EVIL = "<script>alert(1)</script>"


def found() -> list[Found]:
    return [
        Found("a red dog", (2, 0), (0.9, 0.5), right=0, rank=2),
        Found(EVIL, (1, 2), (0.3, 0.2)),
    ]


def images() -> dict[int, np.ndarray]:
    return {i: np.full((112, 112, 3), 60 * i, np.uint8) for i in range(3)}


def test_words_and_names_are_escaped_and_the_right_image_is_marked(tmp_path: Path) -> None:
    document = search_page(found(), images(), {0: "a.png", 1: EVIL, 2: "c.png"}, EVIL, "about")
    assert document.count("<script") == 1 and EVIL not in document and 'src="http' not in document
    assert document.count('class="cell same"') == 1 and document.count('class="cell"') == 3
    assert "its image has rank 2" in document and 'data-filter=".hood"' in document
    assert save_search_page(found(), images(), {}, tmp_path / "x.html").read_text().startswith("<!doctype html>")


def test_sheet_has_a_row_per_text_and_frames_the_right_image() -> None:
    sheet = search_sheet(found(), images(), side=40)
    assert sheet.ndim == 3 and sheet.shape[0] > 80 and sheet.shape[1] >= 84
    framed = (sheet == np.array([30, 160, 80])).all(2)
    assert framed.sum() == 40 * 40 - 34 * 34


def test_thumbnails_survive_damage(tmp_path: Path) -> None:
    source = ArraySource(np.full((2, 20, 30, 3), 200, np.uint8), name="two")
    assert thumbnails(source, [1, 1], 16)[1].shape == (16, 16, 3)
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("bad.png\ngone.png\n")
    small = thumbnails(open_list(tmp_path / "list.txt"), [0, 1], 8)
    assert all((small[i] == 128).all() for i in (0, 1))
