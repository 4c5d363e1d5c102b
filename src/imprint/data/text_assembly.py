"""Batches of a source without images: rows of tokens, made some steps ahead of whoever takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from imprint.core.errors import ConfigError
from imprint.data.assembly import Request, beside
from imprint.data.batch import Batch
from imprint.data.sources import Source


class TextAssembly:
    """One thread over one source of text; the interface of `Assembly`.

    Args:
        source: its `tokens` are handed over.
        prefetch: batches prepared ahead of the one that is taken.
    """

    def __init__(self, source: Source, *, prefetch: int = 2) -> None:
        self.source, self.prefetch = source, prefetch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="imprint-text")
        self._closed = False

    def serve(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield one batch per request, in order."""
        if self._closed:
            raise ConfigError("this loader is closed.")
        waiting, ahead = iter(requests), deque[Future[Batch]]()
        try:
            while True:
                while len(ahead) <= self.prefetch and (request := next(waiting, None)) is not None:
                    ahead.append(self._pool.submit(self.make, request))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for job in ahead:
                job.cancel()

    def make(self, request: Request) -> Batch:
        """Return one batch."""
        index_B, source = request.index_B.copy(), self.source
        labels = source.labels
        return Batch(
            **beside(source, request.seed, request.epoch, index_B),
            index_B=torch.from_numpy(index_B),
            labels_B=None if labels is None else torch.from_numpy(np.asarray(labels[index_B], dtype=np.int64)),
        )

    def close(self) -> None:
        """Stop and join the thread."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
