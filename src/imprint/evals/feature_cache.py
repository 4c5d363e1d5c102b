"""Features kept by content in the user's cache: the same weights on the same images are encoded once.

An entry is a folder named by its key; it is written aside and appears by one rename, so a killed writer leaves nothing
that a reader would believe. What it leaves aside is gone on with by the next writer of that key.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from imprint.data.compact import cache_dir

FORMAT = 1
LIMIT_GB = 20.0
_STALE_SECONDS = 7 * 24 * 3600
PROGRESS = "progress.json"


def cache_folder() -> Path:
    """Return the folder of cached features, inside Imprint's cache folder (`IMPRINT_CACHE` chooses another)."""
    return cache_dir() / "features"


def weights_digest(encoder: nn.Module) -> str:
    """Return a hash over names, shapes, dtypes and bytes of every parameter and buffer."""
    digest = hashlib.blake2b(digest_size=20)
    for name, tensor in sorted(encoder.state_dict().items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(flat.shape)}|{flat.dtype}|".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()


def key_of(parts: dict[str, Any]) -> str:
    """Return the name of the entry for everything that determines the features."""
    # Another release may decode or resample differently, so features do not outlive it.
    text = json.dumps({"format": FORMAT, "release": version("imprint"), **parts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def load(key: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None:
    """Return (features_ND memory-mapped, index_N) of an entry, or None; a damaged entry is removed."""
    folder = cache_folder() / key
    try:
        # Copy-on-write, so that torch may wrap the map without a warning and nobody can alter the file.
        features = np.load(folder / "features.npy", mmap_mode="c", allow_pickle=False)
        index = np.load(folder / "index.npy", allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    if features.ndim != 2 or features.dtype != np.float32 or len(features) < len(index):
        del features
        shutil.rmtree(folder, ignore_errors=True)
        return None
    os.utime(folder)
    return features[: len(index)], index


@contextmanager
def entry(key: str) -> Iterator[Path]:
    """Yield a folder to write an entry into; it becomes the entry when the body ends well.

    One writer per key gets the folder in which an earlier, killed one may have left its part; others at the same time
    get empty ones. When the body fails the folder is removed, unless it holds a file PROGRESS: then it stays, and the
    next writer goes on. That file does not become part of the entry.
    """
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    _sweep_stale(root)
    handle = None
    aside = root / f".aside-{key}"
    try:
        handle = _claim(aside)
        if handle is None:
            aside = Path(tempfile.mkdtemp(prefix=".aside-", dir=root))
        yield aside
        (aside / PROGRESS).unlink(missing_ok=True)
        for path in aside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        try:
            aside.rename(root / key)
        except OSError:  # another process finished the same entry first; its content is the same
            if not (root / key).is_dir():
                raise
    finally:
        if handle is None or not (aside / PROGRESS).exists():
            shutil.rmtree(aside, ignore_errors=True)
        if handle is not None:
            os.close(handle)
    _evict(root, keep=key)


def _claim(aside: Path) -> int | None:
    """Make the folder if need be and lock it until its handle is closed; None when another process has it.

    The lock is the system's, so it ends with its process however that dies. None also where folders cannot be locked.
    """
    try:
        import fcntl
    except ImportError:
        return None
    handle = None
    try:
        aside.mkdir(exist_ok=True)
        handle = os.open(aside, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.stat(aside)):  # else it became an entry between the two calls
            return handle
    except OSError:
        pass
    if handle is not None:
        os.close(handle)
    return None


def _sweep_stale(root: Path) -> None:
    for path in root.glob(".aside-*"):
        try:
            if time.time() - max(p.stat().st_mtime for p in (path, *path.iterdir())) > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def _evict(root: Path, keep: str) -> None:
    """Remove the entries used longest ago while all together exceed IMPRINT_CACHE_GB (default 20)."""
    limit = float(os.environ.get("IMPRINT_CACHE_GB", LIMIT_GB)) * 1e9
    found = []
    for path in root.iterdir():
        if path.name.startswith("."):
            continue
        try:
            found.append((path.stat().st_mtime, sum(p.stat().st_size for p in path.iterdir()), path))
        except OSError:
            continue
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        if path.name != keep:
            shutil.rmtree(path, ignore_errors=True)
            total -= size
