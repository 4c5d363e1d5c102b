"""Images with captions: the forms they come in, what is left out and said, and the draws that training relies on."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from imprint.core.errors import ConfigError, DataError
from imprint.data.caption_files import Columns, read_pairs
from imprint.data.pairs import PairSource, names_pairs, open_pairs

ROWS = [("a.png", "A dog, running ."), ("a.png", 'It says "hi"'), ("b.png", "Two cats"), ("c.png", "One, two, three")]


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return bytes(cv2.imencode(".png", pixels)[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for i, name in enumerate("abc"):
        (tmp_path / "images" / f"{name}.png").write_bytes(image(i))
    return tmp_path


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


FORMS = {
    "bare.csv": "image,caption\n" + "\n".join(f"{i},{c}" for i, c in ROWS),
    "quoted.csv": "image,caption\r\n" + "\r\n".join('{},"{}"'.format(i, c.replace('"', '""')) for i, c in ROWS),
    "headerless.txt": "\n".join(f"{i},{c}" for i, c in ROWS),
    "numbered.txt": "\n".join(f"{i}#{n}\t{c}" for n, (i, c) in enumerate(ROWS)),
    "more.csv": "id,Caption,file_name\n" + "\n".join('7,"{}",{}'.format(c.replace('"', '""'), i) for i, c in ROWS),
    "tab.tsv": "filepath\ttitle\n" + "\n".join(f"images/{i}\t{c}" for i, c in ROWS),
    "bars.csv": "image_name| comment_number| comment\n" + "\n".join(f"{i}| 0| {c}" for i, c in ROWS).replace('"', '"'),
    "lines.jsonl": "\n".join(json.dumps({"file_name": i, "text": c}) for i, c in ROWS),
    "coco.json": json.dumps(
        {
            "images": [{"id": n, "file_name": f"{n}.png"} for n in "abc"],
            "annotations": [{"image_id": i[0], "caption": c} for i, c in ROWS],
        }
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str, folder: Path) -> None:
    source = open_pairs(written(folder, form, FORMS[form]))
    assert [source.captions_of(i) for i in range(3)] == [[ROWS[0][1], ROWS[1][1]], ["Two cats"], ["One, two, three"]]
    assert source.caption_image.tolist() == [0, 0, 1, 2] and len(source.captions) == 4 and source.channels == 3
    assert [source.name(i) for i in range(3)] == ["a.png", "b.png", "c.png"]
    assert source.read(1) == image(1)


def test_captions_over_several_lines_and_stray_quotes(tmp_path: Path) -> None:
    lines = [
        'a.png,"over',
        'two ""lines"""',
        'b.png,"a stray quote',
        'c.png,12" wide',
        "",
        '"d,e.png",named with a comma',
    ]
    path = written(tmp_path, "x.csv", "\n".join(["image,caption", *lines, ""]))
    assert list(read_pairs(path)) == [
        ("a.png", 'over\ntwo "lines"'),
        ("b.png", '"a stray quote'),
        ("c.png", '12" wide'),
        ("d,e.png", "named with a comma"),
    ]


def test_lists_of_captions_and_given_columns(folder: Path) -> None:
    path = written(folder, "a.jsonl", '{"pic": "a.png", "said": ["one", {"raw": "two"}, ""]}\n')
    assert list(read_pairs(path, Columns("pic", "said"))) == [("a.png", "one"), ("a.png", "two"), ("a.png", "")]
    source = open_pairs(path, image_column="pic", caption_column="said")
    assert source.captions_of(0) == ["one", "two"] and source.counted.empty == 1
    with pytest.raises(DataError, match="--image-column"):
        open_pairs(path)
    with pytest.raises(ConfigError, match="Did you mean 'said'"):
        open_pairs(path, image_column="pic", caption_column="sayd")


def test_zips_folders_and_explicit_places(folder: Path) -> None:
    path = written(folder, "captions.csv", FORMS["bare.csv"])
    here = open_pairs(path)
    with zipfile.ZipFile(folder / "pack.zip", "w") as pack:
        for i, name in enumerate("abc"):
            pack.writestr(f"deep/{name}.png", image(i))
    packed = open_pairs(f"{path}:pack.zip")
    assert packed.read(2) == here.read(2) == image(2) and packed.name(2).endswith("deep/c.png")
    assert packed.fingerprint != here.fingerprint == open_pairs(path).fingerprint == open_pairs(folder).fingerprint
    absolute = written(folder, "abs.csv", "image,caption\n" + f"{folder}/images/b.png,hello\n")
    assert open_pairs(absolute).read(0) == image(1)
    assert names_pairs(path) and names_pairs(str(folder)) and names_pairs(f"{path}:images") and names_pairs(here)
    assert not names_pairs(written(folder, "list.csv", "path,label\nimages/a.png,x\n")) and not names_pairs(
        folder / "images"
    )
    changed = open_pairs(written(folder, "captions.csv", FORMS["bare.csv"].replace("cats", "rats")))
    assert changed.fingerprint != here.fingerprint and changed.images.fingerprint == here.images.fingerprint


def test_missing_images_and_empty_captions_are_counted(folder: Path) -> None:
    text = "image,caption\nz.png,gone\nz.png,gone too\na.png,\nb.png,  \nb.png,there\n"
    path = written(folder, "captions.csv", text)
    with pytest.raises(DataError, match=r"1 of 3 images .* 'z.png'.*--drop-missing"):
        open_pairs(path)
    source = open_pairs(path, drop_missing=True)
    assert [source.name(i) for i in range(len(source))] == ["b.png"] and list(source.captions) == ["there"]
    counted = source.counted
    assert (counted.empty, counted.missing, counted.missing_captions, counted.bare) == (2, 1, 2, 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "empty"),
        ("a.csv", "foo,bar\n1,2\n", "--image-column"),
        ("a.csv", "image,caption\na.png no comma\n", "line 2"),
        ("a.csv", "image,caption\na.png,\n", "no pair|all captions"),
        ("a.jsonl", "{bad\n", "line 1"),
        ("a.json", "{}", "COCO"),
    ],
)
def test_what_is_wrong_is_said(name: str, text: str, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_pairs(written(folder, name, text))
    with pytest.raises(ConfigError, match="FILE:IMAGES"):
        open_pairs(folder / "nothing.csv")


def many(folder: Path) -> PairSource:
    rows = [("a.png", f"a{i}") for i in range(5)] + [("b.png", "b0")] + [("c.png", f"c{i}") for i in range(2)]
    return open_pairs(written(folder, "captions.csv", "image,caption\n" + "\n".join(f"{i},{c}" for i, c in rows)))


def test_draws_are_keyed_even_and_of_the_right_image(folder: Path) -> None:
    source = many(folder)
    index = np.array([2, 0, 1, 0])
    drawn = source.drawn(3, 7, index)
    assert np.array_equal(drawn, source.drawn(3, 7, index)) and np.array_equal(source.caption_image[drawn], index)
    assert np.array_equal(drawn[1:3], source.drawn(3, 7, index[1:3])) and drawn[1] == drawn[3]
    seen = np.array([source.drawn(0, epoch, [0])[0] for epoch in range(2000)])
    counts = np.bincount(seen, minlength=5)
    assert len(counts) == 5 and abs(counts - 400).max() < 5 * np.sqrt(400 * 0.8)


def test_subsets_and_splits_keep_captions_with_their_images(folder: Path) -> None:
    source = many(folder)
    part = source.subset([2, 0])
    assert part.captions_of(0) == ["c0", "c1"] and part.captions_of(1) == [f"a{i}" for i in range(5)]
    assert part.read(0) == image(2) and part.caption_image.tolist() == [0, 0] + [1] * 5
    fit, held = source.split(1 / 3, seed=1)
    assert len(fit) == 2 and len(held) == 1 and {fit.name(0), fit.name(1), held.name(0)} == {"a.png", "b.png", "c.png"}
    assert len(fit.captions) + len(held.captions) == 8 and source.split(1 / 3, seed=1)[1].name(0) == held.name(0)
    with pytest.raises(ConfigError, match="empty"):
        source.split(0.01)
