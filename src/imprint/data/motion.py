"""How much moves in a video, and runs of frames drawn in proportion to it.

Motion between two frames is the mean absolute difference of their small grey thumbnails, a cheap stand-in for the
magnitude of optical flow. It is worked out once per video and kept in the user's cache under the video's fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage
from imprint.core.rng import key, uniforms
from imprint.data.assembly import available_cores
from imprint.data.clips import Video
from imprint.data.compact import cache_path, read_cache, write_cache
from imprint.data.decode import decode
from imprint.data.sampler import Indices, Sampler
from imprint.data.sources import Sample

SIDE = 32
"""Side of the thumbnails in pixels: camera noise averages out, a moving arm does not."""

CHUNK = 32
"""Frames read at a time."""


def motion(video: Video) -> npt.NDArray[np.float32]:
    """Return the mean absolute difference of each frame to the next, float32 (frames - 1,) in [0, 1].

    A frame that cannot be read counts as if nothing had moved.
    """
    path = cache_path("motion", video.fingerprint, str(SIDE))
    stored = read_cache(path)
    if stored is not None and stored["motion"].shape == (len(video) - 1,):
        return stored["motion"]
    found = np.zeros(len(video) - 1, dtype=np.float32)
    before: npt.NDArray[np.float32] | None = None
    for at, small in enumerate(_thumbnails(video)):
        if small is not None and before is not None:
            found[at - 1] = np.abs(small - before).mean()
        before = small if small is not None else before
    write_cache(path, {"motion": found})
    return found


def motion_of_runs(videos: Sequence[Video], span: int) -> npt.NDArray[np.float64]:
    """Return the mean motion within every run of `span` frames of every video, in the order of `ClipSource`.

    The videos are read by threads. Where nothing moves at all, every run gets the same.
    """
    with ThreadPoolExecutor(available_cores()) as pool:
        found = list(pool.map(motion, videos))
    sums = [np.concatenate(([0.0], np.cumsum(values, dtype=np.float64))) for values in found]
    steps = span - 1
    runs = np.concatenate([total[steps:] - total[: total.size - steps] for total in sums]) / max(1, steps)
    return runs if runs.sum() > 0 else np.ones_like(runs)


@dataclass(frozen=True, kw_only=True)
class MotionSampler(Sampler):
    """Steps whose runs are drawn in proportion to their motion, with as many rows an epoch as there are runs.

    Row n of epoch e stands for the stratum [p, p + 1) of `size` equal parts of the summed motion, p the epoch's keyed
    permutation of n, and takes the run at a keyed uniform place in it: a run of twice the mean motion comes twice an
    epoch, and all is a pure function of (seed, step).

    Attributes:
        mass: summed motion up to and including every run, float64 (size,).
    """

    mass: npt.NDArray[np.float64]

    def indices(self, step: int) -> Indices:
        """Return the runs of this rank's rows of `step`, int64 (b,)."""
        stratum = Sampler.indices(self, step)
        shift = uniforms(key(self.seed, "motion", self.epoch(step), stratum), 1)[:, 0]
        at = (stratum + shift) * (self.mass[-1] / self.size)
        return np.minimum(np.searchsorted(self.mass, at, side="right"), self.size - 1).astype(np.int64)


def _thumbnails(video: Video) -> Iterator[npt.NDArray[np.float32] | None]:
    for start in range(0, len(video), CHUNK):
        wanted = range(start, min(start + CHUNK, len(video)))
        try:
            yield from [_thumbnail(sample) for sample in video.read(wanted)]
        except (BadImage, OSError):  # one of them is bad: find out which
            yield from [_attempt(video, frame) for frame in wanted]


def _attempt(video: Video, frame: int) -> npt.NDArray[np.float32] | None:
    try:
        return _thumbnail(video.read([frame])[0])
    except (BadImage, OSError):
        return None


def _thumbnail(sample: Sample) -> npt.NDArray[np.float32]:
    pixels = decode(sample, channels=3, min_side=SIDE) if isinstance(sample, bytes) else sample
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small if small.ndim == 2 else small.mean(axis=2)
    return np.asarray(grey / np.iinfo(pixels.dtype).max, dtype=np.float32)
