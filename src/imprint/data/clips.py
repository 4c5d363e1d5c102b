"""Clips: runs of consecutive frames of videos as samples, and the engine that cuts them.

A video is anything with a name and frames that can be read by number: a folder of frames, or (extra `video`) a file.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import DataError
from imprint.core.rng import key, uniforms
from imprint.data.augment import ViewEngine
from imprint.data.draws import Draws
from imprint.data.sources import Sample, Source, digest
from imprint.data.views import Clip

if TYPE_CHECKING:
    from imprint.data.sampler import Order

_logger = logging.getLogger(__name__)


class Video(ABC):
    """An ordered set of frames.

    Attributes:
        name: what a person finds it by.
    """

    name: str

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of frames."""

    @abstractmethod
    def read(self, frames: Sequence[int]) -> list[Sample]:
        """Return frames by number (ascending), encoded or as arrays (H, W, C); may be called from any thread.

        Raises:
            OSError: when the storage fails.
            BadImage: when a frame is damaged.
        """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest that changes when the frames do."""


class FrameFolder(Video):
    """Images of one folder of a source (a real folder, a zip, a tar), in the natural order of their names."""

    def __init__(self, source: Source, rows: Sequence[int], name: str) -> None:
        self.name, self._source = name, source
        names = {int(i): source.name(int(i)) for i in rows}
        self._rows = np.array(sorted(names, key=lambda i: natural(names[i])), dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def read(self, frames: Sequence[int]) -> list[Sample]:
        """Return the images' samples."""
        return [self._source.read(int(self._rows[f])) for f in frames]

    @property
    def fingerprint(self) -> str:
        """Digest of the source and of which of its images these are."""
        return digest(self._source.fingerprint, self._rows)


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key under which `frame10` comes after `frame9`."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def frame_folders(source: Source) -> list[FrameFolder]:
    """Return one video per folder that holds images of the source, in the order of the folders' names."""
    rows: dict[str, list[int]] = {}
    for i in range(len(source)):
        rows.setdefault(str(PurePath(source.name(i)).parent), []).append(i)
    return [FrameFolder(source, rows[folder], folder) for folder in sorted(rows, key=natural)]


@dataclass(frozen=True)
class LeftOut:
    """A video that cannot be used: its name, why (as in `BadImage.reason`, or `too-short`) and the detail."""

    name: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.reason}{': ' + self.detail if self.detail else ''})"


class ClipSource(Source):
    """Every run of `span` consecutive frames of some videos: sample i is one of them.

    As a source of images (for probes and reports) a sample stands for its middle frame. Videos that are too short are
    left out, with a warning that names them.

    Args:
        videos: at least one of `span` frames or more.
        span: frames per sample.
        spec: the words it was opened with.
        motion: draw runs in proportion to the motion in them (`imprint.data.motion`) instead of each once an epoch.
        left_out: videos that could not be opened; those that are too short are added to `self.left_out`.

    Raises:
        DataError: when no video is long enough.
    """

    def __init__(
        self, videos: Sequence[Video], span: int, spec: str, *, motion: bool = False, left_out: Sequence[LeftOut] = ()
    ) -> None:
        self.spec, self.span, self.motion = spec, span, motion
        self.short = tuple(video.name for video in videos if len(video) < span)
        short = (LeftOut(v.name, "too-short", f"{len(v)} of {span} frames") for v in videos if len(v) < span)
        self.left_out = (*left_out, *short)
        self.videos = tuple(video for video in videos if len(video) >= span)
        if not self.videos:
            longest = max((len(video) for video in videos), default=0)
            raise DataError(
                f"'{spec}' holds no video of {span} frames or more (the longest of {len(videos)} has {longest}). Give "
                "one folder of frames per video, or ask for fewer frames or a smaller stride."
            )
        if self.short:
            shown = ", ".join(self.short[:3]) + (", ..." if len(self.short) > 3 else "")
            _logger.warning("%d videos have fewer than %d frames and are left out: %s", len(self.short), span, shown)
        self._starts = np.concatenate(([0], np.cumsum([len(video) - span + 1 for video in self.videos])))

    def __len__(self) -> int:
        """Return the number of runs."""
        return int(self._starts[-1])

    def order(self, *, batch_size: int, seed: int, shuffle: bool, drop_last: bool, rank: int, world: int) -> Order:
        """Return which runs form which step: each once an epoch, or as often as its motion deserves."""
        settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "drop_last": drop_last}
        if not (self.motion and shuffle):
            return super().order(**settings, shuffle=shuffle, rank=rank, world=world)
        from imprint.data.motion import MotionSampler, motion_of_runs

        share = np.cumsum(motion_of_runs(self.videos, self.span))
        return MotionSampler(**settings, size=len(self), rank=rank, world=world, mass=share)

    def place(self, i: int) -> tuple[int, int]:
        """Return (video, first frame) of sample `i`."""
        video = int(np.searchsorted(self._starts, i, side="right")) - 1
        return video, i - int(self._starts[video])

    def read(self, i: int) -> Sample:
        """Return the middle frame of sample `i`."""
        video, first = self.place(i)
        return self.videos[video].read([first + self.span // 2])[0]

    def read_frames(self, i: int, offsets: Sequence[int]) -> list[Sample]:
        """Return the frames of sample `i` at `offsets` (ascending, below `span`) from its first."""
        video, first = self.place(i)
        return self.videos[video].read([first + offset for offset in offsets])

    def name(self, i: int) -> str:
        """Return video and first frame."""
        video, first = self.place(i)
        return f"{self.videos[video].name}@{first}"

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the videos and the span."""
        return digest("clips", str(self.span), *(video.fingerprint for video in self.videos))


@dataclass(frozen=True)
class ClipDraws(Draws):
    """What was drawn for a batch of clips; `frames` holds by clip name int64 (B, T), counted from the run's first."""

    frames: dict[str, npt.NDArray[np.int64]]


class ClipEngine:
    """Draws and renders clips, with the look of `ViewEngine` and its interface.

    Args:
        clips: what to cut; names must differ.
        channels: C of every frame.
        dtype: of the frames.
    """

    def __init__(self, clips: Sequence[Clip], channels: int, dtype: npt.DTypeLike) -> None:
        self.clips, self.channels = tuple(clips), channels
        self._engines = {
            (clip.name, t): ViewEngine((clip.view(t),), channels=channels, dtype=dtype)
            for clip in self.clips
            for t in range(1 if clip.steady else clip.frames)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return (V, T, C, H, W) by clip name."""
        return {c.name: (c.count, c.frames, self.channels, c.crop.size, c.crop.size) for c in self.clips}

    def draw(self, seed: int, epoch: int, index_B: npt.ArrayLike) -> ClipDraws:
        """Draw all parameters of the samples `index_B`; see `draws`."""
        index_B = np.asarray(index_B, dtype=np.int64).reshape(-1)
        found: dict[str, Any] = {}
        for engine in self._engines.values():
            found |= engine.draw(seed, epoch, index_B).by_view
        return ClipDraws(found, {clip.name: drawn_frames(clip, seed, epoch, index_B) for clip in self.clips})

    def offsets(self, draws: ClipDraws, b: int) -> list[int]:
        """Return which frames of its run sample `b` of the batch needs, ascending."""
        return sorted({int(frame) for clip in self.clips for frame in draws.frames[clip.name][b]})

    def render(self, frames: Sequence[Sample], draws: ClipDraws, b: int, out: Mapping[str, npt.NDArray[Any]]) -> None:
        """Make all clips of one sample from its frames at `offsets`, into `out[name][:, b]` of (V, B, T, C, H, W).

        Raises:
            BadImage: when a frame cannot be used.
        """
        at = dict(zip(self.offsets(draws, b), frames, strict=True))
        for clip in self.clips:
            whole = out[clip.name]
            rows = whole.reshape(whole.shape[0], -1, *whole.shape[3:])  # (V, B T, C, H, W), the same memory
            for t, frame in enumerate(draws.frames[clip.name][b]):
                engine = self._engines[clip.name, 0 if clip.steady else t]
                view = engine.views[0].name
                engine.render(at[int(frame)], draws, b, {view: rows}, row=b * clip.frames + t)


def drawn_frames(clip: Clip, seed: int, epoch: int, index_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return which frames of the runs `index_B` a clip shows, int64 (B, T), below `clip.span`."""
    if not clip.gaps:
        return np.broadcast_to(np.arange(clip.frames, dtype=np.int64) * clip.stride, (index_B.size, clip.frames))
    low, high = np.array(clip.gaps, dtype=np.int64).T
    u = uniforms(key(seed, epoch, index_B, clip.name, "gaps"), clip.frames)
    gaps = low + (u[:, 1:] * (high - low + 1)).astype(np.int64)
    ends = np.cumsum(gaps, axis=1)
    first = (u[:, :1] * (clip.span - ends[:, -1:])).astype(np.int64)
    return np.concatenate([first, first + ends], axis=1)
