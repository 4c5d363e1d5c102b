"""Motion of videos and the runs drawn by it, and clips whose frames lie at drawn distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import ConfigError
from imprint.data.clips import ClipSource, FrameFolder, drawn_frames, frame_folders
from imprint.data.loader import Loader
from imprint.data.motion import MotionSampler, motion, motion_of_runs
from imprint.data.sources import open_source
from imprint.data.views import CenterCrop, Clip

PLAIN = CenterCrop(size=16, resize=16)


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[FrameFolder]:
    """Frames 0-9 stand still, then each is 10 grey values lighter than the one before; `still` never moves."""
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    for name, values in {"moves": [20] * 10 + list(range(30, 130, 10)), "still": [90] * 12}.items():
        (tmp_path / "v" / name).mkdir(parents=True)
        for i, value in enumerate(values):
            Image.fromarray(np.full((24, 32, 3), value, np.uint8)).save(tmp_path / "v" / name / f"{i}.png")
    return frame_folders(open_source(str(tmp_path / "v")))


def test_motion_is_the_mean_difference_and_is_worked_out_once(videos, monkeypatch) -> None:
    moves, still = videos
    np.testing.assert_allclose(motion(moves), [0.0] * 9 + [10 / 255] * 10, atol=1e-6)
    assert motion(still).tolist() == [0.0] * 11
    monkeypatch.setattr(FrameFolder, "read", lambda *args: pytest.fail("read again"))
    np.testing.assert_allclose(motion(moves)[-1], 10 / 255, atol=1e-6)


def test_motion_of_runs_equals_the_mean_within_each(videos) -> None:
    runs = motion_of_runs(videos, 5)
    by_hand = [motion(v)[i : i + 4].mean() for v in videos for i in range(len(v) - 4)]
    np.testing.assert_allclose(runs, by_hand, atol=1e-7)
    assert motion_of_runs(videos[1:], 5).tolist() == [1.0] * 8  # nothing moves: all the same
    assert motion_of_runs(videos, 1).tolist() == [1.0] * 32


def test_a_broken_frame_counts_as_still(videos, tmp_path: Path) -> None:
    (tmp_path / "v" / "moves" / "12.png").write_bytes(b"no image")
    source = open_source(str(tmp_path / "v"))
    found = motion(frame_folders(source)[0])
    assert found[11] == 0 and found[12] == pytest.approx(20 / 255, abs=1e-6) and found[13] > 0


def test_runs_come_in_proportion_to_their_motion(videos) -> None:
    clips = ClipSource(videos, 5, "v", motion=True)
    settings = {"batch_size": 6, "seed": 7, "shuffle": True, "drop_last": True}
    order = clips.order(**settings, rank=0, world=1)
    assert isinstance(order, MotionSampler) and order.steps_per_epoch == 24 // 6
    steps = 800
    counts = np.bincount(np.concatenate([order.indices(s) for s in range(steps)]), minlength=24)
    runs = motion_of_runs(videos, 5)
    np.testing.assert_allclose(counts / counts.sum(), runs / runs.sum(), atol=0.004)
    assert (counts[runs == 0] == 0).all()
    # Ranks share a step, whoever asks again gets the same, and a plain order is the one there was.
    halves = [clips.order(**settings, rank=r, world=2).indices(3) for r in (0, 1)]
    assert np.array_equal(np.concatenate(halves), order.indices(3))
    assert np.array_equal(clips.order(**settings, rank=0, world=1).indices(9), order.indices(9))
    assert not isinstance(ClipSource(videos, 5, "v").order(**settings, rank=0, world=1), MotionSampler)
    assert not isinstance(clips.order(**{**settings, "shuffle": False}, rank=0, world=1), MotionSampler)


def test_an_epoch_visits_every_stratum_once() -> None:
    sampler = MotionSampler(size=8, batch_size=4, seed=0, mass=np.cumsum([1.0] * 8))
    assert sorted(np.concatenate([sampler.indices(s) for s in (2, 3)]).tolist()) == list(range(8))


def test_gaps_are_drawn_within_their_bounds_and_by_key(videos) -> None:
    clip = Clip(name="c", frames=3, gaps=((1, 2), (3, 5)), crop=PLAIN)
    assert clip.span == 8
    index = np.arange(4000)
    frames = drawn_frames(clip, 3, 0, index)
    gaps = np.diff(frames, axis=1)
    assert np.unique(gaps[:, 0]).tolist() == [1, 2] and np.unique(gaps[:, 1]).tolist() == [3, 4, 5]
    np.testing.assert_allclose(np.bincount(gaps[:, 1])[3:] / 4000, 1 / 3, atol=0.03)
    assert frames.min() == 0 and frames.max() == 7  # the whole span is used
    assert np.array_equal(drawn_frames(clip, 3, 0, index[1000:1010]), frames[1000:1010])
    assert not np.array_equal(drawn_frames(clip, 3, 1, index), frames)
    for gaps in (((1, 2),), ((0, 2), (1, 1)), ((3, 2), (1, 1))):
        with pytest.raises(ConfigError, match="gaps"):
            Clip(name="c", frames=3, gaps=gaps, crop=PLAIN)


def test_the_loader_delivers_the_drawn_frames(videos) -> None:
    drawn = Clip(name="drawn", frames=3, gaps=((1, 2), (1, 2)), crop=PLAIN)
    fixed = Clip(name="fixed", frames=2, stride=4, crop=PLAIN)
    clips = ClipSource(videos[:1], 5, "v")
    value = [20] * 10 + list(range(30, 130, 10))
    with Loader(clips, [drawn, fixed], batch_size=4, seed=1, workers=2) as loader:
        for step, batch in enumerate(loader.batches(0, 8)):
            frames = drawn_frames(drawn, 1, step // loader.steps_per_epoch, batch.index_B.numpy())
            for b, i in enumerate(batch.index_B.tolist()):
                assert batch.clips["drawn"][0, b, :, 0, 3, 3].tolist() == [value[i + f] for f in frames[b]]
                assert batch.clips["fixed"][0, b, :, 0, 3, 3].tolist() == [value[i], value[i + 4]]
