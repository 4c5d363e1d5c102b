"""The folder index: order, cache, change detection, links, and processes that build it at once."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from imprint.core.errors import DataError
from imprint.data.compact import cache_path
from imprint.data.index import Tree, indexed, is_image, scan


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def settle(root: Path) -> None:
    """Age every directory, as if the tree had been written an hour ago."""
    for folder, _, _ in os.walk(root):
        past = time.time() - 3600
        os.utime(folder, (past, past))


def paths(tree: Tree) -> list[str]:
    return [os.fsdecode(tree.path(i)) for i in range(len(tree))]


def test_order_is_by_bytes_of_directory_then_name(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/10.jpg", "a/x.PNG", "a-b/y.jpg", "a/deep/er/z.webp", "top.tif", "é.jpg", "Z.jpg")
    want = ["Z.jpg", "top.tif", "é.jpg", "a/x.PNG", "a-b/y.jpg", "a/deep/er/z.webp", "b/10.jpg", "b/2.jpg"]
    # directories by bytes of their path: '', 'a', 'a-b', 'a/deep/er', 'b' ('-' sorts before '/')
    assert paths(scan(tmp_path)) == want


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".hidden.jpg", "notes.txt", "Thumbs.db", "__MACOSX/b.jpg", ".git/c.png", "d.npy", "jpg")
    (tmp_path / "folder.jpg").mkdir()
    touch(tmp_path, "folder.jpg/e.JPeG")
    assert paths(scan(tmp_path)) == ["a.jpg", "d.npy", "folder.jpg/e.JPeG"]
    assert is_image(b"x.JPG") and not is_image(b".x.jpg") and not is_image(b"x.jpg.txt")


def test_names_that_are_not_unicode_survive(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    try:
        with open(raw, "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("this file system takes unicode names only")
    assert scan(tmp_path).path(0) == b"caf\xe9.jpg"


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "root", "z/real/1.jpg")
    touch(tmp_path / "outside", "2.jpg", "sub/3.jpg")
    root = tmp_path / "root"
    (root / "a").symlink_to(root / "z" / "real")  # sorts first, but the real directory wins
    (root / "b").symlink_to(tmp_path / "outside")
    (root / "c").symlink_to(tmp_path / "outside")  # the same directory again
    (root / "loop").symlink_to(root)
    (root / "z" / "up").symlink_to(root)
    (tmp_path / "outside" / "back").symlink_to(root)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    (root / "link.jpg").symlink_to(tmp_path / "outside" / "2.jpg")
    assert paths(scan(root)) == ["link.jpg", "b/2.jpg", "b/sub/3.jpg", "z/real/1.jpg"]


def test_the_cache_is_reused_and_only_changed_directories_are_read_again(tmp_path: Path) -> None:
    touch(tmp_path, *(f"c{c}/{i}.jpg" for c in range(5) for i in range(4)))
    settle(tmp_path)
    assert indexed(tmp_path).reread == 6
    again = indexed(tmp_path)
    assert again.reread == 0 and len(again) == 20
    assert isinstance(again.names.blob.base, np.ndarray | np.memmap)
    touch(tmp_path, "c3/new.jpg")
    (tmp_path / "c1" / "0.jpg").unlink()
    changed = indexed(tmp_path)
    assert changed.reread == 2
    assert paths(changed) == paths(scan(tmp_path))
    assert "c3/new.jpg" in paths(changed) and "c1/0.jpg" not in paths(changed)


def test_directories_that_appear_move_or_vanish_are_noticed(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "b/deep/3.jpg")
    settle(tmp_path)
    indexed(tmp_path)
    touch(tmp_path, "b/deep/new/4.jpg")
    (tmp_path / "a").rename(tmp_path / "q")
    assert paths(indexed(tmp_path)) == ["b/2.jpg", "b/deep/3.jpg", "b/deep/new/4.jpg", "q/1.jpg"]
    for path in (tmp_path / "q" / "1.jpg", tmp_path / "q"):
        path.unlink() if path.is_file() else path.rmdir()
    assert paths(indexed(tmp_path)) == ["b/2.jpg", "b/deep/3.jpg", "b/deep/new/4.jpg"]


def test_a_link_that_comes_to_life_is_noticed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "a.jpg")
    (root / "link").symlink_to(tmp_path / "later")
    settle(root)
    assert paths(indexed(root)) == ["a.jpg"]
    assert indexed(root).reread == 0
    touch(tmp_path / "later", "b.jpg")
    assert paths(indexed(root)) == ["a.jpg", "link/b.jpg"]


def test_a_directory_touched_just_now_is_not_trusted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    stamp = os.stat(tmp_path).st_mtime_ns
    indexed(tmp_path)
    touch(tmp_path, "b.jpg")
    os.utime(tmp_path, ns=(stamp, stamp))  # as on a file system with coarse times
    assert len(indexed(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "magic"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str) -> None:
    touch(tmp_path, "a.jpg", "b/c.jpg")
    indexed(tmp_path)
    path = cache_path("index", str(tmp_path.resolve()))
    data = path.read_bytes()
    bad = {"cut": data[:-8], "header": data[:40] + b"?" + data[41:], "empty": b"", "magic": b"X" + data[1:]}[damage]
    path.write_bytes(bad)
    assert paths(indexed(tmp_path)) == ["a.jpg", "b/c.jpg"]


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "data", "a.jpg")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "file" / "cache"))
    assert len(indexed(tmp_path / "data")) == 1
    assert "cannot be written" in caplog.text


def _build(root: str, queue: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    tree = indexed(Path(root))
    queue.put((len(tree), paths(tree)[-1]))


def test_processes_that_build_at_once_do_not_clash(tmp_path: Path) -> None:
    touch(tmp_path, *(f"c{c}/{i:03d}.jpg" for c in range(10) for i in range(100)))
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    queue = context.Queue()
    workers = [context.Process(target=_build, args=(str(tmp_path), queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found == [(1000, "c9/099.jpg")] * 4
    left = list(cache_path("index", str(tmp_path.resolve())).parent.glob("*.part"))
    assert left == []


def test_a_root_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        indexed(tmp_path / "nothing")


def test_many_directories_are_listed_by_threads_in_the_same_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"c{c:03d}/d{d}/{c}.jpg" for c in range(80) for d in range(2)))
    names = paths(scan(tmp_path))
    assert names == sorted(names) and len(names) == 160
