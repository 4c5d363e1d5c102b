"""Online evaluation of methods of text alone: how well held-out tokens are predicted.

Shapes: T tokens that are predicted.
"""

from __future__ import annotations

import numpy as np
import torch

from imprint.core.progress import Progress
from imprint.data.batch import Normalise
from imprint.data.loader import Loader
from imprint.data.token_rows import TokenRows
from imprint.dist.world import World
from imprint.methods.base import Method
from imprint.train.config import RunConfig
from imprint.train.texts import Reading

_ROWS = 32


class TextProbe:
    """Judges a method on at most `probe_images` held-out rows.

    Attributes:
        main: `probe/gain`, nats per token below a unigram model of the training text (add-one smoothing).
        rank_bound: 0, no rank is measured.
    """

    rank_bound = 0

    def __init__(self, config: RunConfig, reading: Reading, world: World) -> None:
        self.config, self.world, self.reading = config, world, reading
        self.main = "probe/gain" if reading.held_rows is not None else None
        assert isinstance(reading.rows, TokenRows)
        counts = np.bincount(reading.rows.stream_T, minlength=reading.tokenizer.vocabulary) + 1.0
        self.unigram_K = torch.from_numpy(-np.log(counts / counts.sum()))

    def judge(self, method: Method) -> dict[str, float]:
        """Return `probe/nats`, `probe/perplexity` and `probe/gain` of held-out tokens; {} without held-out text."""
        held = self.reading.held_rows
        if held is None:
            return {}
        rows = min(_ROWS, len(held))
        total, base, count, training = 0.0, 0.0, 0, method.training
        method.eval()
        try:
            with Loader(held, (), batch_size=rows, seed=0, workers=1, shuffle=False, drop_last=False) as loader:
                steps = max(1, min(self.config.probe_images, len(held)) // rows)
                for step, batch in enumerate(loader.batches(0, steps)):
                    with torch.no_grad():
                        nats_T, tokens_T = method.judge(
                            batch.prepared(self.world.device, Normalise()), Progress(step, steps, steps)
                        )
                    total += float(nats_T.double().sum())
                    base += float(self.unigram_K[tokens_T.cpu()].sum())
                    count += len(tokens_T)
        finally:
            method.train(training)
        nats, unigram = total / max(1, count), base / max(1, count)
        return {"probe/nats": nats, "probe/perplexity": float(np.exp(min(nats, 50.0))), "probe/gain": unigram - nats}
