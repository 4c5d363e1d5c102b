"""Streams of shards: one pass, the same for any number of workers and processes, and resumed in its middle."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from imprint.core.errors import BadImage, CheckpointError, ConfigError, DataError
from imprint.data.batch import Batch
from imprint.data.loader import Loader
from imprint.data.photos import photos
from imprint.data.stream import Stream, is_streamable, open_stream
from imprint.data.stream_shards import ArchiveShard, Shard, open_shard
from imprint.data.views import Crop, Look, View

VIEWS = (View(name="global", count=2, crop=Crop(size=16, scale=(0.5, 1.0)), look=Look(flip=0.5, brightness=0.4)),)
COUNTS = (7, 0, 12, 5, 9, 16, 3, 11)  # 63 images; the second shard is empty


SOURCE = functools.cache(lambda: photos("train"))


def jpeg(i: int) -> bytes:
    """A bundled photograph's tile as a real JPEG."""
    source = SOURCE()
    stream = io.BytesIO()
    Image.fromarray(np.asarray(source.read(i % len(source)))[:, :, :3]).save(stream, "jpeg", quality=90)
    return stream.getvalue()


def write_shard(path: Path, images: dict[str, bytes]) -> Path:
    """Write a tar, zip (every second member deflated) or parquet file."""
    if path.suffix == ".parquet":
        table = pa.table({"image": pa.array([{"bytes": b, "path": n} for n, b in images.items()])})
        pq.write_table(table, path, row_group_size=4)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for n, (name, data) in enumerate(images.items()):
                archive.writestr(name, data, zipfile.ZIP_DEFLATED if n % 2 else zipfile.ZIP_STORED)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in images.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def write_shards(folder: Path, counts: tuple[int, ...] = COUNTS, suffix: str = ".tar") -> list[Path]:
    """Write shards of JPEGs; image k of shard s is called s-k.jpg."""
    folder.mkdir(exist_ok=True)
    total = iter(range(sum(counts)))
    return [
        write_shard(folder / f"s-{s:02d}{suffix}", {f"{s}-{k}.jpg": jpeg(next(total)) for k in range(count)})
        for s, count in enumerate(counts)
    ]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return str(folder / "*.tar")


def loader(words: str, **options: Any) -> Loader:
    stream = {k: options.pop(k) for k in ("window", "images", "processes") if k in options}
    settings = {"batch_size": 4, "seed": 5, "workers": 2} | options
    return Loader(open_stream([words], seed=5, **({"window": 16} | stream)), VIEWS, **settings)


def run(words: str, start: int = 0, stop: int | None = None, **options: Any) -> list[Batch]:
    with loader(words, **options) as made:
        return list(made.batches(start, stop))


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.index_B, b.index_B) and torch.equal(a.views["global"], b.views["global"])


def numbers(batches: list[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.index_B]


def test_every_image_comes_once_and_the_pass_ends(shards: str) -> None:
    batches = run(shards)
    seen = numbers(batches)
    assert len(batches) == 15 and len(set(seen)) == 60  # 63 images: the last three fill no batch
    assert set(seen) == set(range(60))
    for block in range(3):  # shuffled within windows of 16, and only there
        part = seen[16 * block : 16 * block + 16]
        assert sorted(part) == list(range(16 * block, 16 * block + 16)) and part != sorted(part)
    for batch in batches[:12]:  # one of every four neighbours
        assert [i % 16 // 4 for i in batch.index_B.tolist()] == [0, 1, 2, 3]


def test_the_pixels_are_those_of_the_shards(shards: str) -> None:
    stream = open_stream([shards], seed=5)
    names = [stream.name(i) for i in range(63)]
    assert len(set(names)) == 63
    for i in (0, 17, 62):
        shard, member = names[i].split("/")
        with tarfile.open(Path(shards).parent / shard) as archive:
            held = archive.extractfile(member)
            assert held is not None and held.read() == stream.read(i)
    order = list(dict.fromkeys(name.split("/")[0] for name in names))
    assert len(order) == 7 and order != sorted(order), "shards come in a keyed order"
    other = open_stream([shards], seed=6)
    assert [other.name(i) for i in range(63)] != names
    assert stream.layout.channels == 3 and stream.labels is None


@pytest.mark.parametrize(
    "options", [{"workers": 1}, {"workers": 4}, {"prefetch": 1}, {"prefetch": 6}, {"processes": 4}]
)
def test_workers_prefetching_and_reading_change_no_byte(shards: str, options: dict[str, int]) -> None:
    assert all(same(a, b) for a, b in zip(run(shards), run(shards, **options), strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_have_the_rows_of_one_and_read_contiguous_parts(shards: str, world: int) -> None:
    whole = run(shards)
    parts = [run(shards, rank=rank, world=world, processes=world) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([p[step].index_B for p in parts]), batch.index_B)
        assert torch.equal(torch.cat([p[step].views["global"] for p in parts], dim=1), batch.views["global"])
    for rank, part in enumerate(parts):  # of a whole window, each rank has one stretch
        first = numbers(part[:4])
        assert sorted(first) == list(range(rank * 16 // world, (rank + 1) * 16 // world))


@pytest.mark.parametrize("step", range(16))
def test_any_step_can_be_the_first_and_finished_shards_stay_shut(
    shards: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(shards)
    with loader(shards) as first:
        for _ in zip(range(step), first.batches(0), strict=False):
            pass
        state = json.loads(json.dumps(first.sampler.state(step)))
    opened: list[str] = []

    def watched(path: Path, *, through: bool) -> Shard:
        opened.append(path.name)
        return open_shard(path, through=through)

    monkeypatch.setattr("imprint.data.stream_shards.open_shard", watched)
    with loader(shards) as second:
        order = [path.name for path in second.source.chain.paths]  # type: ignore[attr-defined]
        second.sampler.resume(state)
        rest = list(second.batches(step))
        assert [i for i, b in enumerate(rest) if not same(b, whole[step + i])] == []
        assert len(rest) == 15 - step and second.last_step(100) == 15
    # Starting looks into the first shard, for channels and depth, and opens the one after it ahead.
    assert not {order.index(name) for name in opened} & set(range(2, state["shard"])), "a finished shard was opened"
    if step == 12:
        assert state["shard"] > 3


def test_the_end_is_known_when_the_last_batch_is_handed_out(shards: str) -> None:
    with loader(shards) as made:
        assert made.last_step(100) == 100 and made.steps_per_epoch == 0
        for step, _ in enumerate(made.batches(0, 100)):
            assert (made.last_step(100) == step + 1) is (step == 14), step
        assert made.last_step(9) == 9
        assert numbers(list(made.batches(0, 2))) == numbers(run(shards, 0, 2)), "and can begin again"


def test_batches_that_are_a_window_end_exactly_at_the_end(tmp_path: Path) -> None:
    write_shards(tmp_path / "x", (16, 16))
    with loader(str(tmp_path / "x" / "*.tar")) as made:
        ends = [made.last_step(100) for _ in made.batches(0, 100)]
    assert ends[-1] == len(ends) == 8


@pytest.mark.parametrize("suffix", [".zip", ".parquet"])
def test_other_kinds_of_shards_give_the_same_stream(tmp_path: Path, shards: str, suffix: str) -> None:
    write_shards(tmp_path / "x", suffix=suffix)
    for a, b in zip(run(shards), run(str(tmp_path / "x" / f"*{suffix}")), strict=True):
        assert same(a, b)


def test_large_reads_are_few_and_neighbours_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write_shards(tmp_path / "x", (40,))
    shard = ArchiveShard(path, through=True)
    reads: list[int] = []
    pread = os.pread

    def counted(handle: int, size: int, at: int) -> bytes:
        reads.append(size)
        return pread(handle, size, at)

    monkeypatch.setattr("imprint.data.stream_shards.os.pread", counted)
    found = dict(shard.read(range(40)))
    assert len(reads) == 1 and len(found) == 40 and all(isinstance(v, bytes) for v in found.values())
    reads.clear()
    monkeypatch.setattr("imprint.data.stream_shards.GAP", 10)
    assert [j for j, _ in shard.read([3, 4, 20])] == [3, 4, 20] and len(reads) == 3  # tar headers lie between


def test_damaged_members_are_replaced_from_their_window_whoever_reads(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    bad = {"0-3.jpg": b"not an image", "1-2.jpg": b"", "2-5.jpg": jpeg(7)[:300]}
    for s in range(4):
        names = [f"{s}-{k}.jpg" for k in range(20)]
        write_shard(folder / f"s-{s}.tar", {n: bad.get(n, jpeg(20 * s + k)) for k, n in enumerate(names)})
    words = str(folder / "*.tar")
    log = tmp_path / "quarantine.jsonl"
    whole = run(words, quarantine_path=log, bad_limit=0.5)
    named = [json.loads(line) for line in log.read_text().splitlines()]
    assert {entry["name"].split("/")[1] for entry in named} == set(bad)
    asked = [i for b in range(5) for i in range(16 * b, 16 * b + 16)]
    seen = numbers(whole)
    damaged = {entry["index"] for entry in named}
    assert len(seen) == len(asked) and not damaged & set(seen)
    for i in damaged:
        twice = {j for j in seen if seen.count(j) > 1}
        assert any(j // 16 == i // 16 for j in twice), "the one that stands in is of the same window"
    for world in (1, 2):
        parts = [run(words, rank=r, world=world, bad_limit=0.5, workers=3) for r in range(world)]
        for step, batch in enumerate(whole):
            assert torch.equal(torch.cat([p[step].views["global"] for p in parts], dim=1), batch.views["global"])
    again = run(words, quarantine_path=log, bad_limit=0.5)  # a resumed run knows them already
    assert all(same(a, b) for a, b in zip(whole, again, strict=True)) and len(log.read_text().splitlines()) == 3
    with pytest.raises(DataError, match="damaged"):
        run(words, bad_limit=0.0)


def test_a_shard_that_is_cut_off_gives_what_is_whole(tmp_path: Path, shards: str) -> None:
    write_shards(tmp_path / "x", (8, 8))
    first = tmp_path / "x" / "s-00.tar"
    with tarfile.open(first) as archive:
        fourth = archive.getmembers()[3]
    first.write_bytes(first.read_bytes()[: fourth.offset_data + fourth.size // 2])
    stream = open_stream([str(tmp_path / "x" / "*.tar")], seed=0)
    names = [stream.name(i) for i in range(12)]
    bad = names.index("s-00.tar/0-3.jpg")
    with pytest.raises(BadImage, match="truncated"):
        stream.read(bad)
    first.write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"s-00\.tar"):
        list(open_stream([str(tmp_path / "x" / "*.tar")], seed=0).head(16).name(i) for i in range(12))


@pytest.mark.parametrize("change", ["content", "member", "removed", "added", "window"])
def test_other_shards_than_before_are_refused(tmp_path: Path, change: str) -> None:
    write_shards(tmp_path / "x", (12, 12, 12))
    words = str(tmp_path / "x" / "*.tar")
    with loader(words) as made:
        state = made.sampler.state(5)
        current = made.source.chain.paths[state["shard"]]  # type: ignore[attr-defined]
    if change == "content":
        write_shard(current, {f"{k}.jpg": jpeg(k + 50) for k in range(13)})
    elif change == "member":  # the same size, another name inside
        current.write_bytes(current.read_bytes().replace(b"-7.jpg", b"-7.png"))
    elif change == "removed":
        current.unlink()
    elif change == "added":
        write_shard(tmp_path / "x" / "t.tar", {"a.jpg": jpeg(1)})
    with loader(words, window=32 if change == "window" else 16) as again:
        with pytest.raises(CheckpointError, match=r"start a new run|put it back"):
            again.sampler.resume(state)


def test_a_copy_elsewhere_is_the_same_stream(tmp_path: Path) -> None:
    import shutil

    write_shards(tmp_path / "x", (12, 12, 12))
    with loader(str(tmp_path / "x" / "*.tar")) as made:
        state = made.sampler.state(5)
    shutil.copytree(tmp_path / "x", tmp_path / "y", copy_function=shutil.copyfile)
    with loader(str(tmp_path / "y" / "*.tar")) as again:
        again.sampler.resume(state)
        assert numbers(list(again.batches(5))) == numbers(run(str(tmp_path / "x" / "*.tar"), 5))


def test_starting_opens_two_shards_of_a_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "x", (32,))
    data = (tmp_path / "x" / "s-00.tar").read_bytes()
    for s in range(1, 1000):
        (tmp_path / "x" / f"s-{s:04d}.tar").write_bytes(data)
    opened: list[Path] = []

    def watched(path: Path, *, through: bool) -> Shard:
        opened.append(path)
        return open_shard(path, through=through)

    monkeypatch.setattr("imprint.data.stream_shards.open_shard", watched)
    with loader(str(tmp_path / "x" / "*.tar")) as made:
        next(iter(made.batches(0)))
    assert len(opened) <= 4


def test_only_shards_can_be_streamed_and_a_batch_must_fit(tmp_path: Path, shards: str) -> None:
    assert is_streamable([shards, "a.zip"]) and not is_streamable(["images/"]) and not is_streamable([])
    for words in ([str(tmp_path)], [], [shards, "photos"]):
        with pytest.raises(ConfigError, match=r"--data\.stream off"):
            open_stream(words, seed=0)
    with pytest.raises(ConfigError, match="63 images, fewer than one batch of 64"):
        loader(shards, batch_size=64)
    with pytest.raises(ConfigError, match="split over 3"):
        loader(shards, world=3)
    with pytest.raises(ConfigError, match="window"):
        open_stream([shards], seed=0, window=0)


def test_what_is_known_of_its_length(shards: str) -> None:
    stream = open_stream([shards], seed=5)
    assert isinstance(stream, Stream) and stream.chain.count() == 63
    assert len(stream.head(10)) == 10 and len(stream.head(1000)) == 63 == len(stream)
    with pytest.raises(DataError, match="beyond the end"):
        stream.read(63)
    assert len(open_stream([shards], seed=5, images=900)) == 900
    with loader(shards, images=63) as made:
        assert made.steps_per_epoch == 15
