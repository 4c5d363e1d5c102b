"""A run over video files and folders of frames: what is learned from, and what the run says it left out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import ConfigError
from imprint.core.progress import Steps
from imprint.data.clips import ClipSource
from imprint.data.sources import open_source
from imprint.data.stream import Stream
from imprint.recipes.book import recipe
from imprint.train.images import as_clips
from imprint.train.loop import train

pytest.importorskip("av")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    from imprint.viz.video_strip import film

    ground = np.random.default_rng(0).integers(0, 255, (6, 24, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = [np.ascontiguousarray(np.roll(ground, 3 * i, 1)[:, :64]) for i in range(26)]
    film(frames, tmp_path / "v" / "a.mp4")
    film(frames[:4], tmp_path / "v" / "short.mp4")
    (tmp_path / "v" / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "v" / "frames").mkdir()
    for i, frame in enumerate(frames[:16]):
        Image.fromarray(frame).save(tmp_path / "v" / "frames" / f"{i}.png")
    return tmp_path / "v"


def config_of(videos: Path):
    base = recipe("frame_order/debug")
    data = dataclasses.replace(base.data, train=(str(videos),))
    return dataclasses.replace(base, data=data, length=Steps(2), workers=1, device="cpu")


def test_films_and_folders_become_clips_and_the_others_are_quarantined(videos: Path, tmp_path: Path) -> None:
    config = config_of(videos)
    clips = as_clips(config, open_source(str(videos)))
    assert isinstance(clips, ClipSource) and clips.motion and clips.span == 7
    assert [(v.name, len(v)) for v in clips.videos] == [("frames", 16), ("a.mp4", 26)]
    run = train(config, tmp_path / "run")
    assert run.finished
    lines = [json.loads(line) for line in (run.path / "quarantine.jsonl").read_text().splitlines()]
    assert {(line["name"], line["reason"]) for line in lines} == {("broken.mp4", "corrupt"), ("short.mp4", "too-short")}


def test_streams_and_methods_of_images_are_told_apart(videos: Path) -> None:
    source = open_source(str(videos))
    assert as_clips(recipe("simclr/debug"), source) is source
    with pytest.raises(ConfigError, match="cannot be streamed"):
        as_clips(config_of(videos), Stream.__new__(Stream))
