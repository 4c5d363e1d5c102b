"""How fast a folder opens: Imprint's index against torchvision's ImageFolder and a bare scan.

    python benchmarks/index.py                       # 100,000 and 1,000,000 files, writes results/index.json
    python benchmarks/index.py --files 20000         # a quick look, nothing written

The files are empty and lie in folders of 1,000, named as photographs are. `bare scan` lists every directory with
os.scandir and keeps the names; `first` builds Imprint's index and writes its cache; `again` opens the folder with that
cache; `changed` is opening it after one file was added. Every figure comes from a fresh process; the system's own
cache of directories is warm for all of them alike.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from measure import child_main, measure, write_results

CASES = ("bare scan", "torchvision ImageFolder", "imprint first", "imprint again", "imprint changed")
_ROOT, _CACHE = "IMPRINT_BENCH_ROOT", "IMPRINT_CACHE"


def build(root: Path, files: int) -> None:
    """Write `files` empty files in folders of 1,000, with directory times an hour old."""
    for k in range(-(-files // 1000)):
        folder = root / f"n{k:08d}"
        folder.mkdir(parents=True)
        for i in range(min(1000, files - 1000 * k)):
            os.close(os.open(folder / f"n{k:08d}_{i * 7919 % 1000:05d}.JPEG", os.O_CREAT | os.O_WRONLY))
    past = time.time() - 3600
    for folder in (*root.iterdir(), root):
        os.utime(folder, (past, past))


def bare_scan(root: Path) -> int:
    """List every directory once; return the number of names."""
    count, pending = 0, [os.fspath(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            names = []
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    names.append(entry.name)
        count += len(names)
    return count


def call_of(case: str, root: Path) -> Callable[[], object]:
    """Return what is timed, with everything imported and prepared."""
    if case == "bare scan":
        return lambda: bare_scan(root)
    if case == "torchvision ImageFolder":
        importlib.import_module("imprint.backbones.torchvision_compat")  # first: the operators may not load
        from torchvision.datasets import ImageFolder

        return lambda: ImageFolder(os.fspath(root))
    from imprint.data.folder import FolderSource

    cache = Path(os.environ[_CACHE])
    if case == "imprint first":

        def first() -> object:
            shutil.rmtree(cache, ignore_errors=True)
            return FolderSource(root)

        return first
    if case == "imprint again":
        FolderSource(root)
        return lambda: FolderSource(root)
    FolderSource(root)
    extra = next(f for f in sorted(root.iterdir()) if f.is_dir()) / "extra.JPEG"

    def changed() -> object:
        if extra.exists():
            extra.unlink()
        else:
            extra.touch()
        past = time.time() - 1000 - time.perf_counter() % 1000  # settled, and different from before
        os.utime(extra.parent, (past, past))
        return FolderSource(root)

    return changed


def compare(files: int, scratch: Path) -> dict[str, dict[str, float]]:
    """Build a tree and measure every case on it."""
    root = scratch / f"tree-{files}"
    print(f"writing {files:,} files ...", flush=True)
    build(root, files)
    os.environ[_ROOT] = os.fspath(root)
    os.environ[_CACHE] = os.fspath(scratch / "cache")
    figures = {}
    bare_scan(root)
    for case in CASES:
        figure = measure(__file__, case)
        figures[case] = asdict(figure)
        print(f"{files:>9,}  {case:<24} {figure.seconds:8.3f} s   +{figure.peak_mb:6.0f} MB", flush=True)
    size = sum(f.stat().st_size for f in (scratch / "cache").rglob("*.bin"))
    figures["cache"] = {"megabytes": size / 1e6}
    print(f"{files:>9,}  {'cache file':<24} {size / 1e6:8.1f} MB", flush=True)
    shutil.rmtree(root)
    shutil.rmtree(scratch / "cache")
    return figures


def main() -> None:
    """Run as asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--scratch", type=Path, help="folder to write the files in (default: the temporary folder)")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child_main(call_of(options.child, Path(os.environ[_ROOT])))
        return
    scratch = Path(tempfile.mkdtemp(prefix="imprint-index-", dir=options.scratch))
    try:
        results = {str(files): compare(files, scratch) for files in options.files}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if options.files == [100_000, 1_000_000]:
        print("written:", write_results("index", results, command="python benchmarks/index.py"))


if __name__ == "__main__":
    sys.exit(main())
