"""Online evaluation of methods of text alone: how well held-out tokens are predicted.

Shapes: T tokens that are predicted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from imprint.core.progress import Progress
from imprint.data.batch import Normalise
from imprint.data.loader import Loader
from imprint.data.token_rows import TextRows
from imprint.dist.world import World
from imprint.evals.ngrams import NGrams
from imprint.methods.base import Method
from imprint.train.config import RunConfig
from imprint.train.texts import Reading

_ROWS = 32


class TextProbe:
    """Judges a method on at most `probe_images` held-out rows, beside n-gram models of the training text.

    The bigram model sees the true token to the left of every predicted one, also where a masked model does not.

    Attributes:
        main: `probe/gain`, nats per token below a unigram model.
        rank_bound: 0, no rank is measured.
    """

    rank_bound = 0

    def __init__(self, config: RunConfig, reading: Reading, world: World) -> None:
        self.config, self.world, self.reading = config, world, reading
        self.main = "probe/gain" if reading.held_rows is not None else None
        assert isinstance(reading.rows, TextRows)
        self.name = reading.rows.texts.name
        self.ngrams = NGrams(reading.rows.stream_T, reading.tokenizer.vocabulary)

    def judge(self, method: Method) -> dict[str, float]:
        """Return `probe/nats` per held-out token, `probe/unigram`, `probe/bigram`, `probe/perplexity`, `probe/gain`.

        {} without held-out text, and for methods that predict no tokens.
        """
        held = self.reading.held_rows
        if held is None or type(method).judge is Method.judge:
            return {}
        rows = min(_ROWS, len(held))
        parts: list[npt.NDArray[np.float64]] = []
        training = method.training
        method.eval()
        try:
            with Loader(held, (), batch_size=rows, seed=0, workers=1, shuffle=False, drop_last=False) as loader:
                steps = max(1, min(self.config.probe_images, len(held)) // rows)
                for step, batch in enumerate(loader.batches(0, steps)):
                    ready = batch.prepared(self.world.device, Normalise())
                    with torch.no_grad():
                        nats_T, tokens_T = method.judge(ready, Progress(step, steps, steps))
                        places_BL = method.judged_places(ready).cpu().numpy()
                    tokens = tokens_T.cpu().numpy()
                    before = np.roll(batch.tokens[self.name].numpy(), 1, axis=1)[places_BL]
                    own = nats_T.double().cpu().numpy()
                    parts.append(
                        np.stack([own, self.ngrams.unigram_nats(tokens), self.ngrams.bigram_nats(before, tokens)])
                    )
        finally:
            method.train(training)
        nats, unigram, bigram = (float(x) for x in np.concatenate(parts, axis=1).mean(axis=1))
        return {
            "probe/nats": nats,
            "probe/unigram": unigram,
            "probe/bigram": bigram,
            "probe/perplexity": float(np.exp(min(nats, 50.0))),
            "probe/gain": unigram - nats,
        }
