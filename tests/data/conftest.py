"""Small video files written by the tests that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

CODECS = {
    "long.mp4": ("libx264", {"bf": "3", "g": "250", "x264-params": "scenecut=0"}),
    "short.mp4": ("libx264", {"bf": "2", "g": "6"}),
    "open.mkv": ("libx264", {"bf": "3", "g": "8", "x264-params": "open-gop=1:scenecut=0"}),
    "intra.mp4": ("libx264", {"bf": "0", "g": "1"}),
    "vp9.webm": ("libvpx-vp9", {"g": "10", "deadline": "realtime"}),
    "vp8.webm": ("libvpx", {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    "bframes.avi": ("mpeg4", {"bf": "2", "g": "9"}),
    "plain.avi": ("mpeg4", {"bf": "0", "g": "9"}),
}


def write_film(path: Path, count: int = 30, *, side: tuple[int, int] = (48, 64), seed: int = 0) -> Path:
    """Write a moving pattern, so that all frames differ, in the codec that `CODECS` has for its name."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    codec, options = CODECS.get(path.name, CODECS["short.mp4"])
    ground = np.random.default_rng(seed).integers(0, 255, (side[0] // 8, 3 * side[1] // 8, 3), dtype=np.uint8)
    ground = ground.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *side, "yuv420p"
        for i in range(count):
            picture = np.ascontiguousarray(np.roll(ground, 2 * i, 1)[:, : side[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """Write a file without pictures."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def in_order(path: Path) -> list[np.ndarray]:
    """Return all frames by decoding from the start."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(name="write_film")
def _write_film() -> Callable[..., Path]:
    pytest.importorskip("av")
    return write_film


@pytest.fixture(name="write_sound")
def _write_sound() -> Callable[[Path], Path]:
    pytest.importorskip("av")
    return write_sound


@pytest.fixture(name="in_order")
def _in_order() -> Callable[[Path], list[np.ndarray]]:
    return in_order


@pytest.fixture(params=CODECS)
def film_name(request: pytest.FixtureRequest) -> str:
    """Each name that `write_film` has a codec for."""
    return str(request.param)
