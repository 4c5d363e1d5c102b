"""One pass over shards without an index of the whole: a billion images start at once, and every run sees the same.

The shards are put into a keyed order and their samples counted off as they come: that number is a sample's name in a
stream. M batches of B samples at a time form a block: slot j of its batches takes the M samples [j M, (j + 1) M) of
the block, in a keyed order. A batch so holds one of every M neighbours, and rank r of W, which has the slots
[r B / W, (r + 1) B / W), reads one contiguous part of each block whatever W is: together they read every byte once.

To know where a block begins, only the headers of the shards before it must have been counted; a checkpoint keeps that
(`StreamOrder.state`), so that a resumed run opens no shard that is behind it.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from imprint.core.errors import BadImage, CheckpointError, ConfigError, DataError
from imprint.core.rng import key, permuted
from imprint.data.headers import Layout, layout_of
from imprint.data.patterns import expanded
from imprint.data.sampler import Indices
from imprint.data.sources import Sample, Source, digest, spread
from imprint.data.stream_chain import Chain, Hold
from imprint.data.stream_shards import Shard

SHARDS = (".tar", ".zip", ".parquet")


class Stream(Source):
    """Images of tar, zip and parquet shards, met once. There are no labels.

    Its length is the number of images when that is known, else of those in the shards that were opened so far.

    Args:
        paths: the shards.
        spec: the words it was opened with.
        seed: puts the shards in order.
        window: samples over which order is shuffled (rounded to whole batches); about as many are held encoded, twice,
            shared by all processes.
        images: how many images there are, where somebody knows.
        processes: how many read at once; a single one finds headers in passing, in large reads.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        spec: str,
        *,
        seed: int,
        window: int = 4096,
        images: int | None = None,
        processes: int = 1,
    ) -> None:
        if window < 1:
            raise ConfigError(f"the window of a stream must hold at least one image, got {window}.")
        self.spec, self.seed, self.window, self.images = spec, seed, window, images
        order = permuted(np.arange(len(paths)), len(paths), key(seed, "shards"))
        self.chain = Chain([paths[p] for p in order], through=processes == 1)
        self._holds: list[Hold] = []

    def __len__(self) -> int:
        """Return how many images are known of."""
        return self.images if self.images is not None else self.chain.total or self.chain.known

    def read(self, i: int) -> Sample:
        """Return sample `i`, from what was read ahead or else from its shard."""
        for hold in tuple(self._holds):
            found = hold.take(i)
            if found is not None:
                break
        else:
            shard, j = self._found(i)
            ((_, found),) = shard.read([j])
        if isinstance(found, BadImage):
            raise BadImage(found.reason, found.detail)
        return found

    def _found(self, i: int) -> tuple[Shard, int]:
        place = self.chain.locate(i)
        if place is None:
            raise DataError(f"sample {i} lies beyond the end of '{self.spec}', which has {self.chain.total}.")
        return self.chain.shard(place[0]), place[1]

    def name(self, i: int) -> str:
        """Return shard and member."""
        shard, j = self._found(i)
        return shard.name(j)

    def holds(self, i: int, name: str) -> bool:
        """Tell whether the stream has a shard that `name` speaks of; looking into it would open it again."""
        return i >= 0 and name.partition("/")[0].partition("[")[0] in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(path.name for path in self.chain.paths)

    @cached_property
    def layout(self) -> Layout:
        """Channels and bit depth, from up to 16 samples of the first shard that has some."""
        found = []
        for i in spread(len(self._found(0)[0]), 16):
            try:
                found.append(layout_of(self.read(int(i))))
            except BadImage:
                continue
        if not found:
            return Layout(3, np.dtype(np.uint8))
        deep = any(f.dtype == np.uint16 for f in found)
        return Layout(max(f.channels for f in found), np.dtype(np.uint16 if deep else np.uint8))

    @cached_property
    def fingerprint(self) -> str:
        """Digest over names and sizes of all shards, in their order (not over their times: a copy is the same)."""
        with ThreadPoolExecutor(16) as pool:
            sizes = list(pool.map(lambda path: path.stat().st_size, self.chain.paths))
        return digest(*(f"{path.name} {size}" for path, size in zip(self.chain.paths, sizes, strict=True)))

    def stand_ins(self, i: int) -> tuple[int, int]:
        """Return the stretch of one window that sample `i` lies in: its neighbours, open already."""
        first = i // self.window * self.window
        if self.chain.locate(first + self.window - 1) is not None:
            return first, self.window
        return first, (self.chain.total or 0) - first

    def head(self, count: int) -> Source:
        """Return the first samples as a source of their own, which can be read again."""
        if count < 1 or self.chain.locate(count - 1) is None:
            count = self.chain.total or 0
        return self.subset(np.arange(count))

    def order(
        self, *, batch_size: int, seed: int, shuffle: bool, drop_last: bool, rank: int, world: int
    ) -> StreamOrder:
        """Return the one pass: `shuffle=False` keeps the order within the window, the last batch is always whole."""
        if seed != self.seed:
            raise ConfigError(f"the stream was opened with seed {self.seed}, and batches are asked for with {seed}.")
        return StreamOrder(self, batch_size, rank, world, shuffle=shuffle)

    def ahead(self, hold: Hold, wanted: Sequence[int]) -> None:
        """Read samples, given in ascending order, into a hold."""
        try:
            start = 0
            while start < len(wanted):
                shard, j = self._found(wanted[start])
                stop = bisect.bisect_left(wanted, wanted[start] - j + len(shard), start)
                base = wanted[start] - j
                for place, found in shard.read([i - base for i in wanted[start:stop]]):
                    hold.put(base + place, found)
                    if hold.closed:
                        return
                start = stop
        except BaseException as error:
            hold.fail(error)
            raise


class _Block(NamedTuple):
    """The rows of one rank in M batches, or in as many as the stream still fills: int64 (steps, b)."""

    number: int
    rows: npt.NDArray[np.int64]


class StreamOrder:
    """Which samples of a stream form which step, for one rank.

    Attributes:
        span: M, the batches of a block.
        ends_at: the step after the last one, once it is known: before the last batch is handed out.
    """

    def __init__(self, stream: Stream, batch_size: int, rank: int, world: int, *, shuffle: bool = True) -> None:
        if batch_size < 1 or batch_size % world or not 0 <= rank < world:
            raise ConfigError(f"batch size {batch_size} does not split over {world} processes (this is rank {rank}).")
        if stream.chain.locate(batch_size - 1) is None:
            raise ConfigError(
                f"'{stream.spec}' holds {stream.chain.total} images, fewer than one batch of {batch_size}. Use a "
                "smaller --batch-size, or add shards."
            )
        self.stream, self.batch_size, self.shuffle = stream, batch_size, shuffle
        self.slots = np.arange(batch_size * rank // world, batch_size * (rank + 1) // world, dtype=np.int64)
        self.span = max(1, round(stream.window / batch_size))
        self.ends_at: int | None = None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.stream.seed

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches; 0 while nobody knows how many images there are."""
        return 0 if self.stream.images is None else self.stream.images // self.batch_size

    def epoch(self, step: int) -> int:
        """Return 0: there is one pass."""
        return 0

    def block(self, number: int) -> _Block:
        """Return this rank's rows of a block; counts off the shards up to its end."""
        first, chain = number * self.span * self.batch_size, self.stream.chain
        steps = self.span
        if chain.locate(first + steps * self.batch_size - 1) is None:
            steps = max(0, (chain.total or 0) - first) // self.batch_size
            self.ends_at = number * self.span + steps
        places = np.broadcast_to(np.arange(steps, dtype=np.int64), (self.slots.size, steps))
        if self.shuffle:
            words = key(self.seed, "window", number, self.slots[:, None], places)
            places = np.argsort(words, axis=1, kind="stable")
        return _Block(number, np.ascontiguousarray((first + self.slots[:, None] * steps + places).T))

    def walk(self, start: int, stop: int | None) -> Iterator[tuple[int, Indices]]:
        """Yield (step, this rank's rows) up to `stop` or the end, with the samples of a block read ahead."""
        hold, stream = Hold(), self.stream
        stream._holds.append(hold)
        pool = ThreadPoolExecutor(1, thread_name_prefix="imprint-stream")

        def planned(number: int) -> _Block:
            block = self.block(number)
            low = max(start - number * self.span, 0)
            rows = block.rows[low : None if stop is None else max(0, stop - number * self.span)]
            wanted = np.sort(rows, axis=None).tolist()
            hold.expect(wanted)
            pool.submit(stream.ahead, hold, wanted)
            return block

        try:
            step, block, upcoming = start, None, None
            while stop is None or step < stop:
                number, place = divmod(step, self.span)
                if block is None or block.number != number:
                    block = (upcoming or pool.submit(planned, number)).result()
                    more = len(block.rows) == self.span and (stop is None or (number + 1) * self.span < stop)
                    upcoming = pool.submit(planned, number + 1) if more else None
                if place >= len(block.rows):
                    return
                yield step, block.rows[place]
                step += 1
        finally:
            hold.close()
            stream._holds.remove(hold)
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Stop reading ahead."""
        for hold in tuple(self.stream._holds):
            hold.close()

    def state(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint keeps to go on from `step`: the shard that its block begins in, JSON-ready."""
        first = step // self.span * self.span * self.batch_size
        chain = self.stream.chain
        place = chain.locate(first)
        shard, inside = place if place is not None else (len(chain.paths), first - (chain.total or 0))
        return {
            "fingerprint": self.stream.fingerprint,
            "window": self.stream.window,
            "shard": shard,
            "before": first - inside,
            "members": chain.shard(shard).fingerprint if place is not None else None,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned, without opening the shards before.

        Raises:
            CheckpointError: when the shards or the window are not those of the run that was stopped.
        """
        stream, chain = self.stream, self.stream.chain
        advice = (
            "A stream goes on only over the same shards: put them back as they were, or start a new run with --out."
        )
        if state["window"] != stream.window:
            raise CheckpointError(
                f"the run was stopped with --data.window {state['window']} and goes on with {stream.window}; put it "
                "back as it was."
            )
        if state["fingerprint"] != stream.fingerprint:
            raise CheckpointError(
                f"the shards of '{stream.spec}' have changed since the run was stopped: another number, other names or "
                f"other sizes. {advice}"
            )
        shard = int(state["shard"])
        if shard < len(chain.paths) and chain.shard(shard).fingerprint != state["members"]:
            raise CheckpointError(f"the shard '{chain.paths[shard]}' holds other images than before. {advice}")
        chain.anchor(int(state["before"]), shard)


def is_streamable(words: Sequence[str]) -> bool:
    """Tell whether words name shards, by their endings."""
    return bool(words) and all(Path(word).suffix.lower() in SHARDS for word in words)


def open_stream(
    words: Sequence[str], *, seed: int, window: int = 4096, images: int | None = None, processes: int = 1
) -> Stream:
    """Open shards (`.tar`, `.zip`, `.parquet`, and patterns of them) as one stream; see `Stream`.

    Raises:
        ConfigError: for words that name no shards.
        DataError: when one is missing.
    """
    if not is_streamable(words):
        raise ConfigError(
            f"a stream reads shards (.tar, .zip, .parquet, or patterns of them), and {', '.join(words) or 'nothing'} "
            "was given. Use --data.stream off for other sources."
        )
    paths = [path for word in words for path in expanded(word)]
    return Stream(paths, ", ".join(words), seed=seed, window=window, images=images, processes=processes)
