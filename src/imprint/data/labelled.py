"""A labelled part of a labelled source: the same share, or the same number, of every class, repeatable by its seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError, DataError
from imprint.core.rng import key
from imprint.data.combine import Relabelled
from imprint.data.sources import Labels, Source

Picked = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Which images keep their labels.

    Attributes:
        share: of every class, at least one image each (0.01 and 0.1 in SimCLR v2, arXiv 2006.10029, Sec. 3).
        per_class: images of every class, in place of `share`.
        names: file with one image name a line (the `labelled.txt` of another run), in place of both; a relative path
            counts from the run folder.
        rest: `drop` leaves the other images out; `unlabelled` keeps them and hides their labels.
        seed: of the draw. With one seed a smaller part lies inside every larger one.
    """

    share: float = 1.0
    per_class: int | None = None
    names: str | None = None
    rest: Literal["drop", "unlabelled"] = "drop"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"labelled share {self.share} must lie in (0, 1]: 0.01 is 1 % of every class.")
        if self.per_class is not None and self.per_class < 1:
            raise ConfigError(f"labelled images per class must be at least 1, got {self.per_class}.")

    @property
    def needed(self) -> bool:
        """Whether a source without labels must be refused."""
        return self.rest == "drop" or self.names is not None


class HiddenLabels(Relabelled):
    """All images of a source, with labels where they are known and -1 elsewhere."""

    def __init__(self, source: Source, known: Picked) -> None:
        assert source.labels is not None
        self.source, self.classes = source, source.classes
        self.spec = f"{source.spec}[{known.size} of {len(source)} labelled]"
        self.labels = np.full(len(source), -1, dtype=np.int64)
        self.labels[known] = source.labels[known]


def labelled_part(source: Source, wanted: Labelled | None, folder: Path) -> tuple[Source, Picked | None]:
    """Return the source as `wanted` asks, and the positions whose labels are known (None: as the source has it).

    Args:
        source: with labels; without any is allowed where the other images stay anyway.
        wanted: which part; None takes the source as it is.
        folder: where a relative `wanted.names` counts from.

    Raises:
        DataError: for a source without labels, a class with fewer images than asked for, or names it does not hold.
    """
    if wanted is None:
        return source, None
    if source.labels is None:
        if wanted.needed:
            raise DataError(
                f"a labelled part of '{source.spec}' is needed, and it has no labels: give one folder per class, a "
                "list with labels, or another --data."
            )
        return source, None
    if wanted.names is not None:
        picked = _named(source, folder / Path(wanted.names).expanduser())
    else:
        picked = drawn(source.labels, source.classes, wanted)
    return (source.subset(picked) if wanted.rest == "drop" else HiddenLabels(source, picked)), picked


def drawn(labels: Labels, classes: tuple[str, ...], wanted: Labelled) -> Picked:
    """Return the sorted positions of a stratified draw: within each class the images with the smallest keys.

    The key of an image is a function of (seed, position), so the draw depends on no other image.

    Raises:
        DataError: naming the class that has too few images.
    """
    keys = key(wanted.seed, "labelled", np.arange(labels.size))
    order = np.lexsort((keys, labels))  # by class, then by key
    known = order[labels[order] >= 0]
    present, starts, counts = np.unique(labels[known], return_index=True, return_counts=True)
    if wanted.per_class is not None:
        takes = np.full(present.size, wanted.per_class)
        if (short := np.flatnonzero(counts < takes)).size:
            first = int(short[0])
            raise DataError(
                f"class '{_name(classes, int(present[first]))}' has {counts[first]} images, fewer than the "
                f"{wanted.per_class} labelled ones asked for ({short.size} of {present.size} classes are too small). "
                f"Ask for at most {counts.min()} per class."
            )
    else:
        takes = np.maximum(1, np.floor(wanted.share * counts + 0.5).astype(np.int64))
    rank = np.arange(known.size) - np.repeat(starts, counts)
    return np.sort(known[rank < np.repeat(takes, counts)]).astype(np.int64)


def write_names(path: Path, source: Source, picked: Picked) -> None:
    """Write the names of the picked samples, one a line: what `Labelled.names` reads."""
    from imprint.backbones.stored import write_aside

    write_aside(path, "".join(f"{source.name(int(i))}\n" for i in picked).encode("utf-8", "surrogateescape"))


def _named(source: Source, path: Path) -> Picked:
    try:
        wanted = path.read_bytes().decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"the list of labelled images '{path}' cannot be read: {error.strerror or error}.") from None
    names = {line for line in wanted if line}
    found = {source.name(i): i for i in range(len(source)) if source.name(i) in names}
    if len(found) < len(names):
        lost = sorted(names - found.keys())
        raise DataError(
            f"'{path}' names {len(lost)} images that '{source.spec}' does not hold, such as '{lost[0]}'. "
            "Names are those that the source gives its samples."
        )
    return np.array(sorted(found.values()), dtype=np.int64)


def _name(classes: tuple[str, ...], label: int) -> str:
    return classes[label] if label < len(classes) else str(label)
