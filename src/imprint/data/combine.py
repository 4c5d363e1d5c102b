"""Sources made of other sources: some samples of one, several in a row, labels renumbered by class name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from imprint.core.errors import ConfigError, DataError
from imprint.data.headers import Layout
from imprint.data.sources import Labels, Sample, Source, digest

Picked = npt.NDArray[np.int64]


class Subset(Source):
    """Some samples of another source."""

    def __init__(self, source: Source, indices: npt.ArrayLike) -> None:
        picked = np.asarray(indices)
        picked = np.flatnonzero(picked) if picked.dtype == np.bool_ else picked.astype(np.int64).reshape(-1)
        if picked.size and (picked.min() < 0 or picked.max() >= len(source)):
            raise DataError(
                f"a subset of '{source.spec}' asks for sample {int(picked.max())} (smallest {int(picked.min())}), "
                f"but there are {len(source)}."
            )
        self.source, self.indices, self.pixels = source, picked, source.pixels
        self.spec = f"{source.spec}[{picked.size} of {len(source)}]"
        self.labels = None if source.labels is None else np.asarray(source.labels[picked], dtype=np.int64)
        self.classes = source.classes

    def __len__(self) -> int:
        """Return how many were picked."""
        return int(self.indices.size)

    def read(self, i: int) -> Sample:
        """Return the `i`-th picked sample."""
        return self.source.read(int(self.indices[i]))

    def name(self, i: int) -> str:
        """Return its name in the full source."""
        return self.source.name(int(self.indices[i]))

    def tokens(self, seed: int, epoch: int, index_B: Picked) -> dict[str, Picked]:
        """Return the texts of these samples."""
        return self.source.tokens(seed, epoch, self.indices[index_B])

    def targets(self, index_B: Picked) -> dict[str, npt.NDArray[Any]]:
        """Return what is known about these samples."""
        return self.source.targets(self.indices[index_B])

    @cached_property
    def layout(self) -> Layout:
        """Channels and depth are those of the full source, so parts of it fit the same encoder."""
        return self.source.layout

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the full source's and the picked positions."""
        return digest(self.source.fingerprint, self.indices)


class Relabelled(Source):
    """A source with other labels: a subclass sets `source`, `spec`, `classes` and `labels`."""

    source: Source

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.source)

    def read(self, i: int) -> Sample:
        """Return sample `i`."""
        return self.source.read(i)

    def name(self, i: int) -> str:
        """Return the name of sample `i`."""
        return self.source.name(i)

    @cached_property
    def layout(self) -> Layout:
        """Channels and depth of the source."""
        return self.source.layout

    @property
    def fingerprint(self) -> str:
        """Unchanged: the images are the same."""
        return self.source.fingerprint


class Aligned(Relabelled):
    """A source whose labels were renumbered by class name."""

    def __init__(self, source: Source, classes: tuple[str, ...]) -> None:
        if source.labels is None:
            raise DataError(f"'{source.spec}' has no labels. Give a folder with one subfolder per class, or a list.")
        position = {name: k for k, name in enumerate(classes)}
        missing = [name for name in source.classes if name not in position]
        used = set(np.unique(source.labels).tolist())
        missing = [name for name in missing if source.classes.index(name) in used]
        if missing:
            raise DataError(
                f"'{source.spec}' has {len(missing)} classes that the other source lacks, such as '{missing[0]}'. "
                "Both must name their classes alike."
            )
        table = np.array([position.get(name, -1) for name in source.classes], dtype=np.int64)
        self.source, self.spec, self.classes = source, source.spec, classes
        self.labels = table[source.labels] if len(source) else source.labels


class Concat(Source):
    """Several sources one after the other; labels survive when all have them, merged by class name."""

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ConfigError("no data: name at least one source.")
        self.sources = tuple(sources)
        self.starts = np.concatenate([[0], np.cumsum([len(s) for s in sources])]).astype(np.int64)
        self.spec = ", ".join(s.spec for s in sources)
        if all(s.labels is not None for s in sources):
            self.classes = _merged_classes(sources)
            self.labels = np.concatenate([_labels_of(s.aligned(self.classes)) for s in sources])

    def __len__(self) -> int:
        """Return the total."""
        return int(self.starts[-1])

    def _locate(self, i: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.sources[part], i - int(self.starts[part])

    def read(self, i: int) -> Sample:
        """Return sample `i` of the chain."""
        source, j = self._locate(i)
        return source.read(j)

    def name(self, i: int) -> str:
        """Return its name in its own source."""
        source, j = self._locate(i)
        return source.name(j)

    @cached_property
    def layout(self) -> Layout:
        """The widest and deepest of the parts."""
        layouts = [s.layout for s in self.sources]
        deep = any(f.dtype == np.uint16 for f in layouts)
        return Layout(max(f.channels for f in layouts), np.dtype(np.uint16 if deep else np.uint8))

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the parts, in order."""
        return digest(*(s.fingerprint for s in self.sources))


def _merged_classes(sources: Sequence[Source]) -> tuple[str, ...]:
    if all(s.classes == sources[0].classes for s in sources):
        return sources[0].classes
    return tuple(sorted({name for s in sources for name in s.classes}))


def _labels_of(source: Source) -> Labels:
    assert source.labels is not None
    return source.labels
