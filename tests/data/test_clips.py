"""Clips of frame folders: which frames, cut how, and what happens to short and broken videos."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imprint.core.errors import DataError
from imprint.data.clips import ClipSource, frame_folders, natural
from imprint.data.loader import Loader
from imprint.data.sources import open_source
from imprint.data.views import CenterCrop, Clip, Crop, Look


def write_video(folder: Path, count: int, start: int = 0) -> None:
    """Write frames whose grey value is their number, so that a clip tells which frames it holds."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((24, 32, 3), start + i, np.uint8)).save(folder / f"frame{i}.png")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    write_video(tmp_path / "v" / "a", 12)
    write_video(tmp_path / "v" / "b", 7, start=100)
    write_video(tmp_path / "v" / "short", 3, start=200)
    return tmp_path / "v"


def source(videos: Path, span: int) -> ClipSource:
    return ClipSource(frame_folders(open_source(str(videos))), span, str(videos))


def batches(videos: Path, clips: list[Clip], **kwargs):
    clip_source = source(videos, max(c.span for c in clips))
    with Loader(clip_source, clips, batch_size=4, seed=3, **kwargs) as loader:
        return clip_source, list(loader.batches(0, 6))


def test_frames_come_in_natural_order_and_short_videos_are_left_out(videos: Path) -> None:
    clips = source(videos, 5)
    assert [v.name for v in clips.videos] == ["a", "b"] and clips.short == ("short",)
    assert len(clips) == 8 + 3
    assert clips.place(0) == (0, 0) and clips.place(7) == (0, 7) and clips.place(8) == (1, 0)
    frames = clips.read_frames(9, [0, 2, 4])
    assert [int(np.asarray(Image.open(io.BytesIO(f)))[0, 0, 0]) for f in frames] == [101, 103, 105]
    assert natural("frame9.png") < natural("frame10.png") < natural("frame10b.png")
    with pytest.raises(DataError, match="no video of 40 frames"):
        source(videos, 40)


def test_a_clip_holds_consecutive_frames_at_its_stride(videos: Path) -> None:
    plain = CenterCrop(size=16, resize=16)
    slow, fast = Clip(name="slow", frames=3, crop=plain), Clip(name="fast", frames=3, stride=2, count=2, crop=plain)
    clips, found = batches(videos, [slow, fast], workers=2)
    for batch in found:
        assert not batch.views
        assert batch.clips["slow"].shape == (1, 4, 3, 3, 16, 16) and batch.clips["fast"].shape == (2, 4, 3, 3, 16, 16)
        for b, i in enumerate(batch.index_B.tolist()):
            video, first = clips.place(i)
            value = first + (0 if video == 0 else 100)
            assert batch.clips["slow"][0, b, :, 0, 8, 8].tolist() == [value, value + 1, value + 2]
            assert batch.clips["fast"][1, b, :, 2, 3, 3].tolist() == [value, value + 2, value + 4]


def test_a_steady_clip_is_cut_alike_and_an_unsteady_one_is_not(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    folder = tmp_path / "v" / "still"
    folder.mkdir(parents=True)
    for i in range(9):
        Image.fromarray(noise).save(folder / f"{i}.png")
    crop, look = Crop(size=16, scale=(0.2, 0.6)), Look(flip=0.5, brightness=0.4, jitter=0.8)
    steady = Clip(name="steady", frames=4, crop=crop, look=look)
    loose = Clip(name="loose", frames=4, crop=crop, look=look, steady=False)
    _, found = batches(tmp_path / "v", [steady, loose], workers=1)
    clips = found[0].clips
    assert torch.equal(clips["steady"][:, :, 0], clips["steady"][:, :, 3])
    assert not torch.equal(clips["loose"][:, :, 0], clips["loose"][:, :, 3])
    assert not torch.equal(clips["steady"][0, 0, 0], clips["steady"][0, 1, 0])  # samples differ


def test_batches_are_a_function_of_seed_and_step(videos: Path) -> None:
    clip = Clip(name="c", frames=2, crop=Crop(size=16), look=Look(brightness=0.5, jitter=1.0))
    _, one = batches(videos, [clip], workers=1)
    _, two = batches(videos, [clip], workers=2, prefetch=4)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.index_B, b.index_B) and torch.equal(a.clips["c"], b.clips["c"])
    with Loader(source(videos, 2), [clip], batch_size=4, seed=3, workers=2) as loader:
        again = next(iter(loader.batches(4)))
    assert torch.equal(again.clips["c"], one[4].clips["c"])


def test_a_broken_frame_quarantines_its_runs(videos: Path, tmp_path: Path) -> None:
    (videos / "a" / "frame2.png").write_bytes(b"no image")
    log = tmp_path / "quarantine.jsonl"
    _, found = batches(
        videos,
        [Clip(name="c", frames=2, crop=CenterCrop(size=8, resize=8))],
        workers=1,
        bad_limit=0.5,
        quarantine_path=log,
    )
    assert all(len(batch) == 4 for batch in found)
    assert all(set(batch.index_B.tolist()).isdisjoint({1, 2}) for batch in found)
    assert "a@1" in log.read_text() or "a@2" in log.read_text()


def test_videos_in_a_zip_are_read_in_place(videos: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        for file in sorted(videos.rglob("*.png")):
            archive.write(file, file.relative_to(videos).as_posix())
    packed = ClipSource(frame_folders(open_source(str(tmp_path / "v.zip"))), 5, "v.zip")
    assert len(packed) == 11 and {len(v) for v in packed.videos} == {12, 7}
