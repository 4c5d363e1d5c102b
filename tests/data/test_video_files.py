"""Video files: random access equals decoding from the start, and files that cannot be used are known as such."""

from __future__ import annotations

import builtins
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from imprint.core.errors import BadImage, MissingExtra
from imprint.data import video_files
from imprint.data.video_files import VideoFile

av = pytest.importorskip("av")


def test_frames_in_any_order_equal_decoding_from_the_start(
    film_name: str, tmp_path: Path, write_film, in_order
) -> None:
    film = VideoFile(write_film(tmp_path / film_name))
    truth = in_order(film.path)
    assert len(film) == len(truth) >= 29
    order = np.random.default_rng(1).permutation(len(film)).tolist()
    for i in [*order, *range(len(film)), len(film) - 1, 0, 0]:
        (frame,) = film.read([i])
        assert isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape == (48, 64, 3)
        assert np.array_equal(frame, truth[i]), (film_name, i)
    for a, b in zip(film.read([2, 3, 17, 25]), [2, 3, 17, 25], strict=True):
        assert np.array_equal(a, truth[b])


def test_threads_share_a_film_and_keep_few_files_open(tmp_path: Path, write_film, in_order) -> None:
    films = [VideoFile(write_film(tmp_path / f"{i}.mp4", 14, seed=i)) for i in range(video_files.OPEN_FILES + 2)]
    truth = [in_order(film.path) for film in films]
    places = [(f, i) for i in range(14) for f in range(len(films))]
    np.random.default_rng(0).shuffle(places)

    def check(place: tuple[int, int]) -> int:
        film, i = place
        assert np.array_equal(films[film].read([i])[0], truth[film][i])
        return len(video_files._open_files.decoders)

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(check, places)) == video_files.OPEN_FILES


def test_the_index_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_film) -> None:
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    path = write_film(tmp_path / "a.mp4", 12)
    calls = []
    real = video_files.index
    monkeypatch.setattr(video_files, "index", lambda p: calls.append(p) or real(p))
    first, again = VideoFile(path), VideoFile(path)
    assert len(first) == len(again) == 12 and len(calls) == 1 and first.fingerprint == again.fingerprint
    write_film(path, 20, seed=5)
    changed = VideoFile(path)
    assert len(changed) == 20 and len(calls) == 2 and changed.fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["short.mp4", "open.mkv", "plain.avi"])
def test_files_cut_off_are_known_as_such(name: str, tmp_path: Path, write_film) -> None:
    path = write_film(tmp_path / name, 60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(BadImage) as caught:
        VideoFile(path)
    assert caught.value.reason in ("truncated", "corrupt")


def test_files_without_pictures_are_known_as_such(tmp_path: Path, write_sound) -> None:
    with pytest.raises(BadImage, match="unsupported: no moving pictures"):
        VideoFile(write_sound(tmp_path / "sound.mp4"))
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(BadImage, match="corrupt"):
        VideoFile(tmp_path / "noise.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(BadImage, match="empty"):
        VideoFile(tmp_path / "empty.mp4")
    with pytest.raises(OSError):
        VideoFile(tmp_path / "absent.mp4")


def test_a_frame_that_does_not_decode_is_bad_and_the_others_are_read(tmp_path: Path, write_film) -> None:
    path = write_film(tmp_path / "intra.mp4", 12)
    with av.open(str(path)) as container:
        packets = {p.pts: (p.pos, p.size) for p in container.demux(video=0) if p.size}
    at, size = packets[sorted(packets)[7]]
    data = bytearray(path.read_bytes())
    data[at : at + size] = bytes(size)
    path.write_bytes(data)
    film = VideoFile(path)
    with pytest.raises(BadImage, match="frame 7"):
        film.read([7])
    assert [frame.shape for frame in film.read([5, 6, 8, 9])] == [(48, 64, 3)] * 4
    with pytest.raises(BadImage, match="frame 7"):
        film.read([6, 7])


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_film) -> None:
    path = write_film(tmp_path / "a.mp4", 3)
    real = builtins.__import__

    def absent(name: str, *args, **kwargs):
        if name.split(".")[0] == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"imprint\[video\]"):
        VideoFile(path)
