"""Few labels: class-balanced draws that are kept as files of names and can be used again, by us or by others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from imprint.backbones.stored import write_aside
from imprint.core.errors import DataError
from imprint.data.labelled import Labelled, drawn
from imprint.data.sources import Source

Picked = npt.NDArray[np.int64]


def draw_subset(source: Source, *, share: float = 1.0, per_class: int | None = None, seed: int = 0) -> Picked:
    """Return the sorted positions of a share of every class (at least one image each), or of so many of every class.

    The draw is that of `labelled`: within each class the images with the smallest keys of (seed, position), so with one
    seed a smaller part lies inside every larger one. 1 % and 10 % of ImageNet drawn so are what SimCLR (arXiv
    2002.05709, Sec. 6, App. B.5) calls class-balanced.

    Raises:
        DataError: for a source without labels, or a class with fewer images than asked for.
    """
    if source.labels is None:
        raise DataError(f"'{source.spec}' has no labels to draw from; put the images into one folder per class.")
    return drawn(source.labels, source.classes, Labelled(share=share, per_class=per_class, seed=seed))


def write_subset(path: Path, source: Source, picked: Picked) -> str:
    """Write which samples were picked, one a line, and return `names` or `indices`, whichever was written.

    Names are what survives a copy of the data. Where they do not tell the samples apart (two sources joined, a line
    break inside) positions are written.
    """
    names = [source.name(int(i)) for i in range(len(source))]
    count = Counter(names)
    chosen = [names[int(i)] for i in picked]
    if any(count[name] > 1 or not name.strip() or "\n" in name or "\r" in name for name in chosen):
        kind, lines = "indices", [str(int(i)) for i in picked]
    else:
        kind, lines = "names", chosen
    write_aside(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    return kind


def read_subset(path: Path, source: Source) -> Picked:
    """Return the sorted positions that a file lists: names as the source gives them, file names alone, or positions.

    A line that is no full name counts as the end of one behind a slash, so lists such as SimCLR's `1percent.txt`
    (`n01440764_10026.JPEG`) fit a folder per class (`n01440764/n01440764_10026.JPEG`). Lines of digits that name
    nothing are positions. Empty lines, and lines that begin with `#`, are skipped.

    Raises:
        DataError: for a file that cannot be read or is empty, names that the source lacks or has twice, or positions
            beyond its end.
    """
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise DataError(f"the list of labelled images '{path}' cannot be read: {error.strerror or error}.") from None
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"))
    if not lines:
        raise DataError(f"the list of labelled images '{path}' is empty.")
    names = [source.name(i) for i in range(len(source))]
    found = _positions(lines, names)
    lost = [line for line in lines if not found[line]]
    if lost and len(lost) == len(lines) and all(line.isdecimal() for line in lines):
        picked = np.array([int(line) for line in lines], dtype=np.int64)
        if picked.max() >= len(source):
            raise DataError(f"'{path}' lists position {picked.max()}; '{source.spec}' has {len(source)} images.")
        return np.sort(picked)
    if lost:
        raise DataError(
            f"'{path}' names {len(lost)} images that '{source.spec}' does not hold, such as '{lost[0]}'. "
            f"Its names look like '{names[0]}'." if names else f"'{source.spec}' is empty."
        )  # fmt: skip
    twice = [line for line in lines if len(found[line]) > 1]
    if twice:
        raise DataError(
            f"'{path}' names '{twice[0]}', and '{source.spec}' has {len(found[twice[0]])} images of that name; "
            "list full names, or positions."
        )
    return np.array(sorted(found[line][0] for line in lines), dtype=np.int64)


def _positions(lines: list[str], names: list[str]) -> dict[str, list[int]]:
    """Return the positions of every line: of names equal to it, or of names that end in it where none is equal."""
    exact: dict[str, list[int]] = {line: [] for line in lines}
    for i, name in enumerate(names):
        if name in exact:
            exact[name].append(i)
    open_ends = {line for line in lines if not exact[line] and "/" not in line}
    for i, name in enumerate(names):
        end = name.rsplit("/", 1)[-1]
        if end in open_ends:
            exact[end].append(i)
    return exact
