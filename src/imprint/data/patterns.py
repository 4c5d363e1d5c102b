"""Names of many files in one word: `train-{000..009}.tar`, `{a,b}.zip`, `shards/*.parquet`."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from imprint.core.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")


def expanded(text: str) -> list[Path]:
    """Return the files that a pattern names: braces in the order they count, globs sorted by name.

    Raises:
        DataError: when a file that braces name is missing, or a glob matches nothing.
    """
    found: list[Path] = []
    for word in braces(text):
        path = Path(word).expanduser()
        if path.is_file():
            found.append(path)
        elif glob.has_magic(word):
            hits = sorted(Path(hit) for hit in glob.glob(str(path), recursive=True) if Path(hit).is_file())
            if not hits:
                raise DataError(f"nothing matches the pattern '{word}'. Check the folder and the quotes around it.")
            found += hits
        else:
            part = f" (named by '{text}')" if word != text else ""
            raise DataError(f"'{word}'{part} does not exist. Check the spelling and the numbers of the shards.")
    return found


def braces(text: str) -> list[str]:
    """Expand `{000..009}` (zero-padded as written, either direction) and `{a,b}`, several of them as a product."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    before, after = text[: match.start()], text[match.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span is None and "," not in match[1]:  # braces that mean nothing are part of the name
        return [f"{before}{{{match[1]}}}{rest}" for rest in braces(after)]
    if span is None:
        words = match[1].split(",")
    else:
        low, high = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") or span[2].startswith("0") else 0
        words = [str(n).zfill(width) for n in range(low, high + 1)] or [
            str(n).zfill(width) for n in range(low, high - 1, -1)
        ]
    return [f"{before}{word}{rest}" for word in words for rest in braces(after)]
