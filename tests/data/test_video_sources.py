"""Sources over video files: frames as images, clips of files and of folders, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import ConfigError, DataError
from imprint.data.clips import ClipSource, LeftOut
from imprint.data.folder import FolderSource
from imprint.data.loader import Loader, sweep
from imprint.data.quarantine import Quarantine
from imprint.data.sources import open_source
from imprint.data.video_sources import VideoFrames, find_videos, videos_of
from imprint.data.views import CenterCrop, Clip, View

PLAIN = CenterCrop(size=48, resize=48)


def write_frames(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((48, 64, 3), i, np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def films(tmp_path: Path, write_film) -> Path:
    """Two classes of films, in folders."""
    for i, name in enumerate(("run/a10.mp4", "run/a9.mp4", "walk/deep/b.mp4")):
        write_film(tmp_path / "films" / name, 12 + i, seed=i)
    (tmp_path / "films" / "run" / ".hidden.mp4").write_bytes(b"no film")
    return tmp_path / "films"


def test_a_folder_of_films_is_a_source_of_their_frames(films: Path, in_order) -> None:
    source = open_source(str(films))
    assert isinstance(source, VideoFrames) and len(source) == 12 + 13 + 14
    assert source.name(0) == "run/a9.mp4/0" and source.name(13 + 11) == "run/a10.mp4/11"
    assert source.classes == ("run", "walk") and np.bincount(source.labels).tolist() == [25, 14]
    assert source.channels == 3 and source.dtype == np.uint8
    assert np.array_equal(source.read(25 + 5), in_order(films / "walk/deep/b.mp4")[5])
    view = View(name="eval", crop=PLAIN)
    seen = np.concatenate([b.index_B.numpy() for b in sweep(source, view, batch_size=8, workers=2)])
    assert seen.tolist() == list(range(39))
    assert source.fingerprint == open_source(films).fingerprint
    part = videos_of(source.subset(range(13, 39)))[0]  # any source over films knows which frames belong together
    assert [(v.name, len(v)) for v in part] == [("run/a10.mp4", 12), ("walk/deep/b.mp4", 14)]


def test_words_for_films(films: Path, tmp_path: Path) -> None:
    one = open_source(str(films / "run/a9.mp4"))
    assert len(one) == 13 and one.labels is None
    assert len(open_source(str(films / "run/*.mp4"))) == 25
    (tmp_path / "list.txt").write_text("films/run/a9.mp4\tx\nfilms/walk/deep/b.mp4\ty\n")
    listed = open_source(str(tmp_path / "list.txt"))
    assert listed.classes == ("x", "y") and np.bincount(listed.labels).tolist() == [13, 14]
    (tmp_path / "both.txt").write_text("films/run/a9.mp4\nphoto.png\n")
    with pytest.raises(DataError, match="1 video files among 2"):
        open_source(str(tmp_path / "both.txt"))
    write_frames(tmp_path / "frames" / "v", 10)
    both = open_source((str(films / "run/a9.mp4"), str(films / "run/a10.mp4"), str(tmp_path / "frames")))
    assert len(both) == 13 + 12 + 10 and [len(v) for v in videos_of(both)[0]] == [13, 12, 10]
    with pytest.raises(ConfigError, match=r"a video file \(\.mp4"):
        (tmp_path / "x.docx").touch()
        open_source(str(tmp_path / "x.docx"))
    with pytest.raises(DataError, match="does not exist"):
        open_source(str(films / "absent.mp4"))


def test_a_folder_of_both_gives_its_images_and_all_its_videos(films: Path) -> None:
    write_frames(films / "still" / "c", 9)
    source = open_source(str(films))
    assert isinstance(source, FolderSource) and len(source) == 9  # as before there were films
    videos, left_out = videos_of(source)
    assert [(v.name, len(v)) for v in videos] == [
        ("still/c", 9), ("run/a9.mp4", 13), ("run/a10.mp4", 12), ("walk/deep/b.mp4", 14),
    ] and left_out == []  # fmt: skip


def test_clips_of_films_hold_their_frames(films: Path, in_order) -> None:
    videos, _ = videos_of(open_source(str(films)))
    clips = ClipSource(videos, 5, "films")
    truth = [in_order(films / v.name) for v in videos]
    clip = Clip(name="c", frames=3, stride=2, crop=PLAIN)
    with Loader(clips, [clip], batch_size=6, seed=1, workers=2) as loader:
        for batch in loader.batches(0, 5):
            for b, i in enumerate(batch.index_B.tolist()):
                video, first = clips.place(i)
                for t in range(3):
                    frame = truth[video][first + 2 * t][:, 8:56]  # the centre 48 of 64 columns
                    assert np.array_equal(batch.clips["c"][0, b, t].permute(1, 2, 0).numpy(), frame)


def test_films_that_cannot_be_used_are_named(
    films: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, write_film, write_sound
) -> None:
    write_sound(films / "run" / "sound.mp4")
    (films / "walk" / "broken.mp4").write_bytes(b"not a film at all")
    write_film(films / "walk" / "short.mp4", 3)
    source = open_source(str(films))
    assert isinstance(source, VideoFrames) and len(source) == 39 + 3
    assert "2 of 6 video files are left out: run/sound.mp4 (unsupported" in caplog.text
    videos, left_out = videos_of(source)
    clips = ClipSource(videos, 8, "films", left_out=left_out)
    assert [(gone.name, gone.reason) for gone in clips.left_out] == [
        ("run/sound.mp4", "unsupported"), ("walk/broken.mp4", "corrupt"), ("walk/short.mp4", "too-short"),
    ]  # fmt: skip
    quarantine = Quarantine(clips, tmp_path / "quarantine.jsonl")
    for _ in range(2):
        for gone in clips.left_out:
            quarantine.mention(gone.name, gone.reason, gone.detail)
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["run/sound.mp4", "walk/broken.mp4", "walk/short.mp4"]
    assert lines[2]["detail"] == "3 of 8 frames" and len(Quarantine(clips, tmp_path / "quarantine.jsonl")) == 0
    several = open_source((str(films / "walk/broken.mp4"), str(films / "run/a9.mp4")))
    assert len(several) == 13


def test_only_unusable_films_are_an_error(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "broken.mp4").write_bytes(b"not a film at all")
    for word in (tmp_path / "films", tmp_path / "films" / "broken.mp4"):
        with pytest.raises(DataError, match="no video file of .* can be used: .*broken.mp4"):
            open_source(str(word))
    (tmp_path / "bare").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_source(str(tmp_path / "bare"))
    assert str(LeftOut("a.mp4", "empty")) == "a.mp4 (empty)"


def test_links_between_folders_end(films: Path) -> None:
    (films / "run" / "loop").symlink_to(films, target_is_directory=True)
    assert find_videos(films) == ["run/a9.mp4", "run/a10.mp4", "walk/deep/b.mp4"]
