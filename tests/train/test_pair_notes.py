"""What a file of pairs held and training does not see is told in the run's log."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from imprint.core.errors import DataError
from imprint.core.progress import Steps
from imprint.recipes.book import recipe
from imprint.train.entry import pretrain_run


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    lines = ["image,caption"]
    for i in range(20):
        picture = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), picture)
        lines += [f"{i}.png,number {i} of them", f"{i}.png," + ("" if i % 5 else "very " * 40 + "long")]
    lines.append("19.png,   ")
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def config(train, **changes):
    base = recipe("clip/debug")
    data = dataclasses.replace(base.data, train=(str(train),))
    return dataclasses.replace(base, data=data, device="cpu", workers=1, length=Steps(1), batch_size=8, **changes)


def test_empty_and_cut_captions_are_counted_once(folder):
    out = folder / "run"
    run = pretrain_run(config(folder / "captions.csv"), out)
    told = [line["warning"] for line in run.metrics() if "warning" in line]
    assert any("17 empty captions are left out" in text and "with them 0 images" in text for text in told)
    assert any("4 of 24 captions are longer than 16 tokens" in text for text in told)
    again = pretrain_run(None, out, extend=Steps(1))
    assert len([1 for line in again.metrics() if "empty captions" in str(line.get("warning"))]) == 1


def test_images_without_captions_are_refused(folder):
    with pytest.raises(DataError, match="should hold one file of captions"):
        pretrain_run(config(folder / "images"), folder / "run")
    assert not (folder / "run").exists()
