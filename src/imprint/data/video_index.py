"""What a video file holds: the time of every frame and which are key frames, read from its packets without decoding.

Where packets do not tell (AVI stores no time of showing, VP8 hides frames) the whole file is decoded once instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage, MissingExtra

Index = dict[str, npt.NDArray[np.int64]]

WHOLE: Final = 0.95
"""A file with a smaller share of the frames, or of the time, that its header announces was cut off."""

_HIDES_FRAMES: Final = ("vp8",)


def library() -> Any:
    """Return the package av.

    Raises:
        MissingExtra: when it is not installed.
    """
    try:
        import av
        import av.video.reformatter
    except ImportError as error:
        raise MissingExtra("av", "video", "reading video files") from error
    return av


def opened(path: Path) -> Any:
    """Open a file for reading.

    Raises:
        BadImage: when it is no video.
        OSError: when it cannot be read.
    """
    errors = library().error
    try:
        return library().open(str(path))
    except (errors.FileNotFoundError, errors.PermissionError):
        raise
    except errors.FFmpegError as error:
        raise BadImage("corrupt", f"no video file, or its header is damaged or cut off ({error.strerror})") from error


def pictures(container: Any) -> Any:
    """Return the stream of moving pictures, to be decoded by one thread: the loader's own threads share the work.

    Raises:
        BadImage: when there is none (sound alone, with or without a cover picture).
    """
    for stream in container.streams.video:
        if not stream.disposition & library().stream.Disposition.attached_pic:
            stream.codec_context.thread_count = 1
            return stream
    raise BadImage("unsupported", "no moving pictures in it")


def index(path: Path) -> Index:
    """Return `count` (1,), `times` (frames,) in units of the stream and ascending, and `keys`, the key frames' numbers.

    Times are empty where frames can only be counted from the start of the file, and keys with them.

    Raises:
        BadImage: when the file holds no pictures, was cut off, or its first frame cannot be decoded.
        OSError: when it cannot be read.
    """
    with opened(path) as container:
        stream = pictures(container)
        codec = stream.codec_context.name
        packets, times, keys = _packets(container, stream)
    with opened(path) as container:
        first = next(iter(_frames(container)), None)
    if first is None:
        raise BadImage("empty", "no frame in it")
    ordered = np.unique(times)
    told = ordered.size == packets and ordered.size > 0 and ordered[0] == first.pts
    if not told or codec in _HIDES_FRAMES:
        return _counted(path)
    return {"count": np.array([packets]), "times": ordered, "keys": np.searchsorted(ordered, np.sort(keys))}


def _packets(container: Any, stream: Any) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the number of packets that show a frame, the times they have, and those of key frames."""
    packets, times, keys, end = 0, [], [], 0.0
    try:
        for packet in container.demux():  # of sound, too: which stream ends last differs
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index or packet.size == 0 or packet.is_discard:
                continue
            packets += 1
            if packet.pts is not None:
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
    except library().error.FFmpegError as error:
        raise BadImage("truncated", f"it breaks off after {packets} frames ({error.strerror})") from error
    _require_whole(container, stream, packets, end)
    return packets, np.array(times, dtype=np.int64), np.array(keys, dtype=np.int64)


def _require_whole(container: Any, stream: Any, packets: int, end: float) -> None:
    """Compare with what the header announces: frames (MP4, AVI), or seconds (Matroska; elsewhere they are guessed)."""
    if packets < WHOLE * stream.frames:
        raise BadImage("truncated", f"{packets} of {stream.frames} frames are there")
    if "matroska" in container.format.name and container.duration:
        seconds = container.duration / library().time_base
        if end < WHOLE * seconds:
            raise BadImage("truncated", f"{end:.2f} of {seconds:.2f} seconds are there")


def _frames(container: Any) -> Any:
    try:
        yield from container.decode(pictures(container))
    except library().error.FFmpegError as error:
        raise BadImage("corrupt", f"it cannot be decoded ({error.strerror})") from error


def _counted(path: Path) -> Index:
    """Decode the whole file."""
    with opened(path) as container:
        found = [(frame.pts, bool(frame.key_frame)) for frame in _frames(container)]
    times = np.array([-1 if time is None else time for time, _ in found], dtype=np.int64)
    timed = all(time is not None for time, _ in found) and bool((np.diff(times) > 0).all())
    keys = np.flatnonzero([key for _, key in found])
    nothing = np.empty(0, dtype=np.int64)
    return {"count": np.array([len(found)]), "times": times if timed else nothing, "keys": keys if timed else nothing}
