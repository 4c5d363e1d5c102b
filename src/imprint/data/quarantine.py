"""The list of samples that cannot be used: named once, shared by all processes of a run, and bounded."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from imprint.core.errors import BadImage, DataError
from imprint.data.sources import Source

try:
    import fcntl
except ImportError:  # no such locks on this platform: a sample may then be named twice by two processes
    fcntl = None  # type: ignore[assignment]

SLACK = 2
"""This many bad samples never stop a run, however small the source (unless the limit is 0 or none are left)."""


class Quarantine:
    """Bad samples of one source, kept in memory and appended to a file of JSON lines.

    Each line is `{"name", "reason", "detail", "index"}`. The file is read when a run is resumed, and before every
    write, under a lock: what another process found is known here, counts, and is not named again. Lines about samples
    of other sources are left alone.

    Args:
        source: where the samples come from.
        path: the file, or None to keep the list in memory only.
        limit: share of the samples, in [0, 1], that may be bad; `max(2, limit * of)` samples, never all of them.
        of: number of samples the share is of; by default the whole source. A stream's grows as it is read.
    """

    def __init__(
        self,
        source: Source,
        path: str | os.PathLike[str] | None = None,
        limit: float = 0.05,
        *,
        of: int | None = None,
    ) -> None:
        self.source, self.limit = source, limit
        self.path = None if path is None else Path(path)
        self._of = of
        self._bad: dict[int, dict[str, Any]] = {}
        self._found: set[int] = set()
        self._lock = threading.Lock()
        self._read = 0
        if self.path is not None and self.path.exists():
            with open(self.path, "rb") as file:
                self._catch_up(file.read())

    @property
    def size(self) -> int:
        """Number of samples that the share is of."""
        return len(self.source) if self._of is None else self._of

    @property
    def allowed(self) -> int:
        """How many may be bad."""
        return min(max(SLACK, int(self.limit * self.size)), self.size - 1) if self.limit > 0 else 0

    def __len__(self) -> int:
        """Return how many distinct samples are bad."""
        return len(self._bad)

    def __contains__(self, index: int) -> bool:
        """Tell whether a sample is known to be bad."""
        return index in self._bad

    def found(self, index: int) -> bool:
        """Tell whether this process itself saw that a sample is bad, so that it need not be tried again.

        One that is only known from the file is tried once more: it may have been repaired since.
        """
        return index in self._found

    def entries(self) -> list[dict[str, Any]]:
        """Return the entries in the order of their position in the source."""
        with self._lock:
            return [self._bad[i] for i in sorted(self._bad)]

    def add(self, index: int, error: BadImage) -> None:
        """Name a bad sample once.

        Raises:
            DataError: when more than the allowed number are bad; it says how many, where they are listed, and names
                the first ones.
        """
        with self._lock:
            self._found.add(index)
            if index in self._bad:
                return
            entry = {
                "name": self.source.name(index),
                "reason": error.reason,
                "detail": error.detail,
                "index": index,
            }
            if self.path is None:
                self._bad[index] = entry
            else:
                self._append(self.path, entry)
            if len(self._bad) > self.allowed:
                raise self._too_many()

    def mention(self, name: str, reason: str, detail: str) -> None:
        """Name something that never became a sample (a video file that cannot be opened) in the file, once.

        It does not count towards the limit; its `index` is -1.
        """
        if self.path is None:
            return
        entry = {"name": name, "reason": reason, "detail": detail, "index": -1}
        line = json.dumps(entry, ensure_ascii=True).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)  # a new run's folder may not be there yet
        with self._lock, open(self.path, "a+b") as file:
            file.seek(0)
            known = file.read()
            if line not in known:
                file.write(line if not known or known.endswith(b"\n") else b"\n" + line)

    def _append(self, path: Path, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=True).encode() + b"\n"
        try:
            with open(path, "a+b") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(self._read)
                tail = file.read()
                self._catch_up(tail)
                if entry["index"] not in self._bad:
                    if tail and not tail.endswith(b"\n"):  # a process died while writing: close its line
                        line = b"\n" + line
                    file.write(line)
                    file.flush()
        except OSError as error:
            raise DataError(
                f"the quarantine file '{path}' cannot be written ({error.strerror or error}), so a damaged sample "
                f"would go unnamed: {entry['name']} ({entry['reason']})."
            ) from error
        self._bad.setdefault(entry["index"], entry)

    def _catch_up(self, tail: bytes) -> None:
        whole = tail.rfind(b"\n") + 1
        self._read += whole
        for line in tail[:whole].splitlines():
            try:
                entry = json.loads(line)
                index = int(entry["index"])
                known = self.source.holds(index, entry["name"])
            except (ValueError, KeyError, TypeError):  # a torn line of a process that died
                continue
            if known:
                self._bad.setdefault(index, entry)

    def _too_many(self) -> DataError:
        count, size = len(self._bad), self.size
        first = "; ".join(f"{e['name']} ({e['reason']})" for e in list(self._bad.values())[:5])
        listed = f"They are listed in '{self.path}'. " if self.path is not None else ""
        return DataError(
            f"{count} of {size} samples of '{self.source.spec}' are damaged ({count / size:.1%} so far), more than the "
            f"limit of {self.limit:.1%}. {listed}The first: {first}. Repair or remove them; pretraining can "
            "be told to bear more by --data.bad-limit."
        )
