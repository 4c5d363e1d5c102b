"""Video files (extra `video`, PyAV): random access to their frames.

A file is indexed once (`video_index`), and the index is kept in the user's cache by size and modification time. A frame
is then reached from the key frame before it. Frames are RGB, uint8, as they are stored: rotation that a file only asks
for is not applied.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage
from imprint.data.clips import Video
from imprint.data.compact import cache_path, read_cache, write_cache
from imprint.data.sources import Sample, digest
from imprint.data.video_index import index, library, opened, pictures

OPEN_FILES: Final = 4
"""Files that each thread keeps open, with the place it has reached in them."""


_NOWHERE: Final = 1 << 62  # a place from which no frame is reached by going on


class VideoFile(Video):
    """The frames of a video file, in the order of their time.

    Args:
        path: the file.
        name: what it is called; None takes the path.

    Raises:
        BadImage: when it cannot be used: `empty`, `unsupported` (no pictures in it), `truncated`, `corrupt`.
        OSError: when it cannot be read.
        MissingExtra: without the package av.
    """

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self.path = Path(path)
        self.name = os.fspath(path) if name is None else name
        stat = self.path.stat()
        self._state = np.array([stat.st_size, stat.st_mtime_ns], dtype=np.int64)
        if stat.st_size == 0:
            raise BadImage("empty", "0 bytes")
        where = cache_path("video", os.fspath(self.path.resolve()))
        known = read_cache(where)
        if known is None or not np.array_equal(known["state"], self._state):
            known = index(self.path)
            write_cache(where, known | {"state": self._state})
        self._times, self._keys, self._count = known["times"], known["keys"], int(known["count"][0])
        self._bad: set[int] = set()

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._count

    def read(self, frames: Sequence[int]) -> list[Sample]:
        """Return frames as uint8 arrays (H, W, 3)."""
        return [self._read(int(frame)) for frame in frames]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of file name, size and modification time; moving the file keeps it."""
        return digest("video", self.path.name, self._state)

    def _read(self, frame: int) -> npt.NDArray[np.uint8]:
        if frame in self._bad:
            raise BadImage("corrupt", f"frame {frame} of {self.name} cannot be decoded")
        try:
            return _open_files.of(self).frame(frame)
        except BadImage:
            self._bad.add(frame)
            raise


class _Decoder:
    """A file opened at some frame, used by one thread."""

    def __init__(self, video: VideoFile) -> None:
        self.path, self.times, self.keys = video.path, video._times, video._keys
        self.reformatter: Any = library().video.reformatter.VideoReformatter()
        self.reopen()

    def reopen(self) -> None:
        """Begin again at the start of the file."""
        self.container = opened(self.path)
        self.stream = pictures(self.container)
        self.coming: Iterator[Any] = self.container.decode(self.stream)
        self.at = -1

    def frame(self, number: int) -> npt.NDArray[np.uint8]:
        """Return a frame: go on from here where no key frame lies between, else from the key frame before it.

        A seek may end behind the frame (containers look up the time of decoding, not of showing), and pictures next
        to a key frame may lean on those before it. Then earlier key frames are tried, at last the start of the file.
        """
        key = int(np.searchsorted(self.keys, number, side="right")) - 1
        if self.at < number and (key < 0 or int(self.keys[key]) <= self.at + 1):
            found = self._forward(number)
            if found is not None:
                return found
        back = 1
        while key >= 0:
            if self._seek(int(self.keys[key])) and (found := self._forward(number)) is not None:
                return found
            key, back = key - back, 4 * back
        self.reopen()
        found = self._forward(number)
        if found is None:
            raise BadImage("corrupt", f"frame {number} of {self.path} cannot be decoded")
        return found

    def _seek(self, key: int) -> bool:
        try:
            self.container.seek(int(self.times[key]), stream=self.stream, backward=True)
        except library().error.FFmpegError:
            return False
        self.coming = self.container.decode(self.stream)
        return True

    def _forward(self, number: int) -> npt.NDArray[np.uint8] | None:
        """Decode up to a frame; None when it does not come. Files without times are counted from their start."""
        try:
            for frame in self.coming:
                if self.times.size:
                    place = int(np.searchsorted(self.times, -1 << 62 if frame.pts is None else frame.pts))
                    if place == self.times.size or self.times[place] != frame.pts:
                        continue
                else:
                    place = self.at + 1
                self.at = place
                if place == number and not frame.is_corrupt:
                    return self._pixels(frame)
                if place >= number:
                    break
        except library().error.FFmpegError:
            pass
        self.at = _NOWHERE
        return None

    def _pixels(self, frame: Any) -> npt.NDArray[np.uint8]:
        pixels: npt.NDArray[np.uint8] = self.reformatter.reformat(frame, format="rgb24").to_ndarray()
        return pixels


class _OpenFiles(threading.local):
    """The decoders of a thread, the least recently used one closed first; they end with their thread."""

    def __init__(self) -> None:
        self.decoders: OrderedDict[str, _Decoder] = OrderedDict()

    def of(self, video: VideoFile) -> _Decoder:
        name = f"{video.path}\0{video.fingerprint}"
        if name not in self.decoders:
            while len(self.decoders) >= OPEN_FILES:
                self.decoders.popitem(last=False)[1].container.close()
            self.decoders[name] = _Decoder(video)
        self.decoders.move_to_end(name)
        return self.decoders[name]


_open_files = _OpenFiles()
