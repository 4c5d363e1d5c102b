"""Captions that lie beside their images inside .tar and .zip shards, in the manner of WebDataset and img2dataset.

`NAME.jpg` goes with `NAME.txt` (one caption) or `NAME.json` (a caption, or a list of them, in one of its entries); NAME
is the path up to the first dot of its last part.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imprint.core.errors import DataError
from imprint.data.caption_files import CAPTION_COLUMNS, captions_in
from imprint.data.compact import Names, cache_path, read_cache, write_cache
from imprint.data.shard_index import files_in, key_of
from imprint.data.shards import ShardSource

_LARGEST = 1 << 20  # bytes of a caption's file


def captioned(shards: ShardSource, column: str | None = None) -> tuple[list[int], list[list[str]], int, int]:
    """Return (images with captions, captions of each, captions without a word, images left without a caption).

    Args:
        shards: the images.
        column: entry of the JSON files with the captions; None finds it and takes `.txt` files before.

    Raises:
        DataError: when no image has a caption, or a shard cannot be read.
    """
    with ThreadPoolExecutor(min(16, len(shards.paths))) as pool:
        told = list(pool.map(lambda path: captions_of_shard(path, column), shards.paths))
    kept: list[int] = []
    captions: list[list[str]] = []
    empty = bare = 0
    for start, index, known in zip(shards.starts[:-1], shards.shards, told, strict=True):
        taken: set[bytes] = set()
        for j, name in enumerate(index.names):
            key = key_of(name)
            if key in taken:  # a mask, a depth, a smaller copy
                continue
            taken.add(key)
            several = known.get(key, [])
            full = [text for text in several if text]
            empty += len(several) - len(full)
            bare += not full
            if full:
                kept.append(int(start) + j)
                captions.append(full)
    if not kept:
        field = f"'{column}'" if column is not None else f"'{CAPTION_COLUMNS[0]}' or '{CAPTION_COLUMNS[2]}'"
        raise DataError(
            f"none of the {len(shards)} images in '{shards.spec}' has a caption beside it: NAME.txt, or NAME.json with "
            f"an entry {field}, for NAME.jpg."
        )
    return kept, captions, empty, bare


def captions_of_shard(path: Path, column: str | None = None) -> dict[bytes, list[str]]:
    """Return the captions of one shard by the names of their images, white space collapsed, from the cache if known.

    Raises:
        DataError: when the shard cannot be read.
    """
    stat = path.stat()
    stamp = np.array([stat.st_size, stat.st_mtime_ns], dtype=np.int64)
    stored_at = cache_path("captions", str(path.resolve()), column or "")
    stored = read_cache(stored_at)
    if stored is None or not np.array_equal(stored.get("stamp", stamp[:0]), stamp):
        found = _scanned(path, column)
        several = [text.encode() for texts in found.values() for text in texts]
        counts = np.array([len(texts) for texts in found.values()], dtype=np.int64)
        arrays = {"stamp": stamp, "counts": counts} | Names.of(found).arrays("keys") | Names.of(several).arrays("texts")
        write_cache(stored_at, arrays)
        return found
    keys, texts = Names.stored(stored, "keys"), iter(Names.stored(stored, "texts"))
    return {
        key: [next(texts).decode() for _ in range(count)] for key, count in zip(keys, stored["counts"], strict=True)
    }


def _scanned(path: Path, column: str | None) -> dict[bytes, list[str]]:
    found: dict[bytes, list[str]] = {}
    plain: set[bytes] = set()
    try:
        for member in files_in(path):
            base = member.name.rpartition(b"/")[2].lower()
            is_text = base.endswith(b".txt") and column is None
            if base.startswith(b".") or not (is_text or base.endswith(b".json")) or member.full > _LARGEST:
                continue
            key = key_of(member.name)
            if is_text or key not in plain:
                texts = list(_texts(member.content(), None if is_text else (column or "")))
                if texts:
                    found[key] = texts
                    plain |= {key} if is_text else set()
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        if not found:  # of a shard that is cut off, what comes before counts, as its images do
            raise DataError(f"the shard '{path}' cannot be read: {error}. Fetch or write it again.") from error
    return found


def _texts(content: bytes, field: str | None) -> Iterator[str]:
    """Yield the captions of a text file (`field` None) or a JSON file; none where it cannot be read."""
    try:
        text = content.decode("utf-8-sig")
        entry = None if field is None else json.loads(text)
    except ValueError:
        return
    if field is None:
        yield " ".join(text.split())
    elif isinstance(entry, dict):
        name = next((name for name in ((field,) if field else CAPTION_COLUMNS) if name in entry), None)
        if name is not None:
            yield from (" ".join(several.split()) for several in captions_in(entry[name]))
