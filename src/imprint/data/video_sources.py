"""Sources over video files: all their frames as images, and the videos of any source."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from imprint.core.errors import BadImage, DataError
from imprint.data.assembly import available_cores
from imprint.data.clips import LeftOut, Video, frame_folders, natural
from imprint.data.combine import Concat
from imprint.data.filelist import ListSource
from imprint.data.folder import FolderSource
from imprint.data.headers import Layout
from imprint.data.index import is_video
from imprint.data.labels import labels_of_dirs
from imprint.data.sources import Sample, Source, digest
from imprint.data.video_files import VideoFile
from imprint.data.video_index import library

_logger = logging.getLogger(__name__)


class VideoFrames(Source):
    """All frames of some video files as images, file after file; sample names are `FILE/FRAME`.

    The class of a frame is the first folder of its file's name, by the rules for folders of images.

    Attributes:
        videos: the files that can be used.
        left_out: the others, and why.
    """

    def __init__(self, videos: Sequence[VideoFile], spec: str, left_out: Sequence[LeftOut] = ()) -> None:
        self.videos, self.spec, self.left_out = tuple(videos), spec, tuple(left_out)
        counts = np.array([len(video) for video in self.videos], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(counts)))
        folders = [os.fsencode("" if os.path.isabs(v.name) else os.path.dirname(v.name)) for v in self.videos]
        self.classes, self.labels = labels_of_dirs(folders, counts)

    def __len__(self) -> int:
        """Return the number of frames of all files."""
        return int(self._starts[-1])

    def _place(self, i: int) -> tuple[VideoFile, int]:
        video = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self.videos[video], i - int(self._starts[video])

    def read(self, i: int) -> Sample:
        """Return frame `i` of all, uint8 (H, W, 3)."""
        video, frame = self._place(i)
        return video.read([frame])[0]

    def name(self, i: int) -> str:
        """Return the file's name and the frame's number."""
        video, frame = self._place(i)
        return f"{video.name}/{frame}"

    @cached_property
    def layout(self) -> Layout:
        """Three channels of 8 bits."""
        return Layout(3, np.dtype(np.uint8))

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the files."""
        return digest("frames", *(video.fingerprint for video in self.videos))


def find_videos(root: str | os.PathLike[str]) -> list[str]:
    """Return the paths below a folder, relative to it, of all video files, folder by folder in natural order.

    Hidden files and folders are passed over; links to folders are followed once.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__MACOSX"]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files if is_video(name)]
    return sorted(found, key=lambda name: (natural(os.path.dirname(name)), natural(name)))


def open_videos(paths: Sequence[str | os.PathLike[str]], spec: str, names: Sequence[str] | None = None) -> VideoFrames:
    """Open video files as a source of their frames; those that cannot be used are left out, with a warning.

    Args:
        paths: the files.
        spec: the words they were opened with.
        names: what they are called; None takes the paths.

    Raises:
        DataError: when none can be used.
        MissingExtra: without the package av.
    """
    videos, left_out = _examined(paths, [os.fspath(path) for path in paths] if names is None else names)
    if not videos:
        raise DataError(f"no video file of '{spec}' can be used: {_some(left_out)}. Do they play elsewhere?")
    return VideoFrames(videos, spec, left_out)


def open_video_folder(root: str | os.PathLike[str]) -> VideoFrames | None:
    """Open all video files below a folder as their frames; None when there are none.

    Raises:
        DataError: when none of them can be used.
    """
    names = find_videos(root)
    return open_videos([os.path.join(root, name) for name in names], os.fspath(root), names) if names else None


def open_listed(listed: ListSource) -> VideoFrames:
    """Return the frames of a list of video files, with the labels of the list.

    Raises:
        DataError: for a list that names other files, too, or when no file can be used.
    """
    names = [os.fsdecode(name) for name in listed.paths]
    films = sum(map(is_video, names))
    if films < len(names):
        raise DataError(f"the list '{listed.spec}' names {films} video files among {len(names)}; make a list of each.")
    opened = open_videos([os.path.join(listed.base, name) for name in names], listed.spec, names)
    if listed.labels is not None:
        label = dict(zip(names, listed.labels.tolist(), strict=True))
        per_video = np.array([label[video.name] for video in opened.videos], dtype=np.int64)
        opened.labels = np.repeat(per_video, [len(video) for video in opened.videos])
        opened.classes = listed.classes
    else:
        opened.labels, opened.classes = None, ()
    return opened


def videos_of(source: Source) -> tuple[list[Video], list[LeftOut]]:
    """Return the videos of a source and what was left out: every folder of images, and every video file.

    A folder that holds both gives its images when it is opened as a source; here its video files count as well.
    """
    if isinstance(source, Concat):
        parts = [videos_of(part) for part in source.sources]
        return [video for videos, _ in parts for video in videos], [gone for _, left in parts for gone in left]
    if isinstance(source, VideoFrames):
        return list(source.videos), list(source.left_out)
    videos: list[Video] = list(frame_folders(source))
    names = find_videos(source.root) if isinstance(source, FolderSource) else []
    if not names:
        return videos, []
    files, left_out = _examined([source.root / name for name in names], names)  # type: ignore[attr-defined]
    return [*videos, *files], left_out


def _examined(paths: Sequence[str | os.PathLike[str]], names: Sequence[str]) -> tuple[list[VideoFile], list[LeftOut]]:
    library()

    def attempt(path: str | os.PathLike[str], name: str) -> VideoFile | LeftOut:
        try:
            return VideoFile(path, name)
        except BadImage as error:
            return LeftOut(name, error.reason, error.detail)
        except OSError as error:
            return LeftOut(name, "unreadable", error.strerror or str(error))

    with ThreadPoolExecutor(available_cores()) as pool:
        found = list(pool.map(attempt, paths, names))
    left_out = [entry for entry in found if isinstance(entry, LeftOut)]
    if left_out:
        _logger.warning("%d of %d video files are left out: %s", len(left_out), len(found), _some(left_out))
    return [entry for entry in found if isinstance(entry, VideoFile)], left_out


def _some(left_out: Sequence[LeftOut]) -> str:
    return ", ".join(str(entry) for entry in left_out[:3]) + (", ..." if len(left_out) > 3 else "")
