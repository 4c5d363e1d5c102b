"""Videos with masks: every layout, the order of frames, both kinds of masks, and what is refused."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imprint.core.errors import DataError
from imprint.data.davis import numeric, open_videos, read_mask


def write(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    image.save(path)


def frame(value: int = 90, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def mask(value: int = 1, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    ids = np.zeros(size, np.uint8)
    ids[1:3, 2:5] = value
    return ids


LAYOUTS = {
    "davis": ("JPEGImages/480p/{s}/{f}.jpg", "Annotations/480p/{s}/{f}.png"),
    "full": ("DAVIS/JPEGImages/Full-Resolution/{s}/{f}.jpg", "DAVIS/Annotations/Full-Resolution/{s}/{f}.png"),
    "youtube": ("JPEGImages/{s}/{f}.jpg", "Annotations/{s}/{f}.png"),
    "inside": ("{s}/frames/{f}.jpg", "{s}/masks/{f}.png"),
    "above": ("frames/{s}/{f}.png", "masks/{s}/{f}.png"),
    "beside": ("{s}/{f}.jpg", "{s}/{f}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_layouts(tmp_path: Path, layout: str, zipped: bool) -> None:
    root = tmp_path / "data"
    for name in ("b", "a"):
        for i in range(3):
            write(root / LAYOUTS[layout][0].format(s=name, f=f"{i:05d}"), frame(40 * i))
            write(root / LAYOUTS[layout][1].format(s=name, f=f"{i:05d}"), mask(2), palette=True)
    spec = root
    if zipped:
        spec = tmp_path / "data.zip"
        with zipfile.ZipFile(spec, "w") as archive:
            for path in root.rglob("*.*"):
                archive.write(path, path.relative_to(root))
            archive.writestr("__MACOSX/JPEGImages/480p/c/0.jpg", b"junk")
    source = open_videos(spec)
    assert [video.name for video in source.sequences] == ["a", "b"] and len(source) == 2 and source.channels == 3
    video = source.sequences[1]
    assert len(video) == 3 and video.shape == (6, 8)
    assert [int(video.frame(i)[0, 0, 0]) // 20 for i in range(3)] == [0, 2, 4]
    assert np.array_equal(video.mask(2), mask(2))
    assert source.fingerprint == open_videos(root).fingerprint  # by content, wherever it lies


def test_frames_and_sequences_in_numeric_order(tmp_path: Path) -> None:
    for name in ("s10", "s9"):
        for i in (1, 10, 2):
            write(tmp_path / "frames" / name / f"img{i}.png", frame(i))
            write(tmp_path / "masks" / name / f"mask_{i:04d}.png", mask(i))
    source = open_videos(tmp_path)
    assert [v.name for v in source.sequences] == ["s9", "s10"]
    video = source.sequences[0]
    assert [int(video.frame(i)[0, 0, 0]) for i in range(3)] == [1, 2, 10]
    assert [int(video.mask(i).max()) for i in range(3)] == [1, 2, 10]  # found by number
    assert sorted(["a10b2", "a2b10", "a2", "b"], key=numeric) == ["a2", "a2b10", "a10b2", "b"]


def test_one_object_of_255_and_void(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "s/frames" / f"{i}.png", frame())
        write(tmp_path / "s/masks" / f"{i}.png", mask(255) if i < 2 else np.zeros((6, 8), np.uint8))
        ids = mask(3)
        ids[5] = 255
        write(tmp_path / "t/frames" / f"{i}.png", frame())
        write(tmp_path / "t/masks" / f"{i}.png", ids)
    one, several = open_videos(tmp_path).sequences
    assert np.array_equal(one.mask(0), mask(1)) and not one.mask(2).any()
    assert set(np.unique(several.mask(1))) == {0, 3, 255}


def test_lists_of_sequences(tmp_path: Path) -> None:
    for name in ("cat", "dog", "owl"):
        for i in range(2):
            write(tmp_path / "JPEGImages/480p" / name / f"{i}.jpg", frame())
            write(tmp_path / "Annotations/480p" / name / f"{i}.png", mask())
    for year, names in (("2016", "cat dog"), ("2017", "owl\ncat\n")):
        (tmp_path / "ImageSets" / year).mkdir(parents=True)
        (tmp_path / "ImageSets" / year / "val.txt").write_text(names)
    own = tmp_path / "own.txt"
    own.write_text("dog\n")

    def names(*wanted: str) -> list[str]:
        return [v.name for v in open_videos(tmp_path, wanted).sequences]

    assert names("2017/val") == ["owl", "cat"] and names("dog", "2016/val") == ["dog", "cat"]
    assert names(str(own)) == ["dog"]
    with pytest.raises(DataError, match="2016/val, 2017/val"):
        names("val")
    with pytest.raises(DataError, match="Did you mean 'dog'"):
        names("doog")


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_videos(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no videos"):
        open_videos(tmp_path / "empty")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataError, match="neither a folder nor a readable zip"):
        open_videos(tmp_path / "text.zip")
    one = tmp_path / "one"
    write(one / "s/frames/0.png", frame())
    write(one / "s/masks/0.png", mask())
    with pytest.raises(DataError, match="'s'.* has one frame"):
        open_videos(one)
    bare = tmp_path / "bare"
    write(bare / "s/frames/0.png", frame())
    write(bare / "s/frames/1.png", frame())
    write(bare / "s/masks/1.png", mask())
    with pytest.raises(DataError, match="no mask for its first frame"):
        open_videos(bare)


def test_sizes_and_kinds_of_files(tmp_path: Path) -> None:
    write(tmp_path / "s/frames/0.png", frame())
    write(tmp_path / "s/frames/1.png", frame(size=(6, 9)))
    write(tmp_path / "s/masks/0.png", mask(size=(3, 4)))
    write(tmp_path / "s/masks/1.png", np.dstack([mask(), mask(2), mask()]))
    video = open_videos(tmp_path).sequences[0]
    with pytest.raises(DataError, match="1.png has 9 x 6 pixels"):
        video.frame(1)
    with pytest.raises(DataError, match="4 x 3 pixels"):
        video.mask(0)
    with pytest.raises(DataError, match="colour picture"):
        video.mask(1)
    with pytest.raises(DataError, match="m.png cannot be read"):
        read_mask(b"\x89PNG nonsense", "m.png")
    (tmp_path / "s/frames/0.png").write_bytes(b"")
    with pytest.raises(DataError, match="0.png"):
        open_videos(tmp_path).sequences[0].frame(0)


def test_the_real_sample() -> None:
    folder = Path(os.environ.get("IMPRINT_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    path = folder / "davis_sample" / "davis.zip"
    if not path.is_file():
        pytest.skip("no sample data")
    source = open_videos(path)
    assert {v.name: len(v) for v in source.sequences} == {"dog": 60, "kite-surf": 50, "motocross-jump": 40}
    assert all(v.shape == (480, 854) and set(np.unique(v.mask(0))) == {0, 1} for v in source.sequences)
