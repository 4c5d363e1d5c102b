"""What runs ahead of a stream: shards opened before they are reached, samples read before they are used."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from imprint.data import stream_shards
from imprint.data.stream_shards import Found, Shard

_OPEN = 64  # shards kept open behind and ahead of the one in use


class Chain:
    """Shards one after the other, opened when they are reached and the next one ahead of that; safe for threads."""

    def __init__(self, paths: Sequence[Path], *, through: bool) -> None:
        self.paths, self.through = paths, through
        self._open: OrderedDict[int, Future[Shard]] = OrderedDict()
        self._known = [(0, 0)]  # (samples before, shard), ascending; the rest is counted off from there
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="imprint-shards")
        self.total: int | None = None

    def anchor(self, before: int, shard: int) -> None:
        """Make known that `before` samples lie in the shards before `shard`."""
        with self._lock:
            at = bisect.bisect_left(self._known, (before, shard))
            if self._known[at : at + 1] != [(before, shard)]:
                self._known.insert(at, (before, shard))

    @property
    def known(self) -> int:
        """Number of samples in the shards that were counted so far."""
        return self._known[-1][0]

    def shard(self, p: int) -> Shard:
        """Return shard `p`, open."""
        with self._lock:
            future = self._ask(p)
            if p + 1 < len(self.paths):
                self._ask(p + 1)
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return future.result()

    def _ask(self, p: int) -> Future[Shard]:
        if p not in self._open:
            self._open[p] = self._pool.submit(stream_shards.open_shard, self.paths[p], through=self.through)
        self._open.move_to_end(p)
        return self._open[p]

    def locate(self, i: int) -> tuple[int, int] | None:
        """Return (shard, place in it) of sample `i`, or None beyond the end; counts off shards up to there."""
        with self._lock:
            before, p = self._known[bisect.bisect_right(self._known, (i, len(self.paths))) - 1]
            while p < len(self.paths):
                count = len(self.shard(p))
                if i < before + count:
                    self.anchor(before + count, p + 1)
                    return p, i - before
                before, p = before + count, p + 1
                self.anchor(before, p)
            self.total = before
            return None

    def count(self) -> int:
        """Return the number of samples of all shards, by their headers."""
        with ThreadPoolExecutor(16) as pool:
            return sum(pool.map(lambda path: len(stream_shards.open_shard(path, through=False)), self.paths))

    def close(self) -> None:
        """Stop the threads that open shards."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Hold:
    """Samples that were read ahead, each until it is taken."""

    def __init__(self) -> None:
        self._expected: set[int] = set()
        self._arrived: dict[int, Found] = {}
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self.closed: bool = False

    def expect(self, wanted: Sequence[int]) -> None:
        """Announce samples: who asks for one of them from now on waits for it."""
        with self._change:
            self._expected.update(wanted)

    def put(self, i: int, found: Found) -> None:
        """Bring a sample."""
        with self._change:
            if i in self._expected:
                self._arrived[i] = found
                self._change.notify_all()

    def fail(self, error: BaseException) -> None:
        """Tell all who wait that nothing more comes."""
        with self._change:
            self._error = error
            self._change.notify_all()

    def take(self, i: int) -> Found | None:
        """Return a sample and forget it, or None when it was not announced."""
        with self._change:
            while i in self._expected and i not in self._arrived and not self.closed:
                if self._error is not None:
                    raise self._error
                self._change.wait()
            self._expected.discard(i)
            return self._arrived.pop(i, None)

    def close(self) -> None:
        """Forget everything."""
        with self._change:
            self.closed = True
            self._expected.clear()
            self._arrived.clear()
            self._change.notify_all()
