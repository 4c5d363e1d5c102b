"""Online evaluation: what an encoder is worth while it trains. Label-free ranks always, kNN and a probe with labels."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from imprint.backbones.encoder import Encoder
from imprint.data.batch import Normalise
from imprint.data.loader import sweep
from imprint.data.sources import Source, open_source, spread
from imprint.data.view_recipes import evaluation_views
from imprint.dist.world import World
from imprint.evals.features import FeatureTable, extract
from imprint.evals.knn import KNNConfig, vote
from imprint.evals.linear import LinearConfig, probe
from imprint.methods.base import Method
from imprint.ops.ranks import per_dimension_std, rankme
from imprint.train.config import RunConfig
from imprint.train.pretext import OwnTask
from imprint.train.texts import Reading

TEST_SHARE = 5
"""Without a source of its own, every fifth labelled training image serves as a test image."""


class Probe(Protocol):
    """Judges a method while it trains.

    Attributes:
        main: the metric, the higher the better, that decides which checkpoint is the best; None without one.
        rank_bound: the largest rank that the features can have; 0 where none is measured.
    """

    main: str | None
    rank_bound: int

    def judge(self, method: Method) -> dict[str, float]:
        """Return figures by name."""


def online_probe(config: RunConfig, source: Source, reading: Reading | None, world: World) -> Probe:
    """Return what judges a method of this configuration: by its images, by held-out pairs, or by held-out text."""
    if reading is None:
        return OnlineProbe(config, source, world)
    if source.pixels:
        from imprint.train.pair_probe import PairProbe

        return PairProbe(config, reading, world)
    from imprint.train.text_probe import TextProbe

    return TextProbe(config, reading, world)


class OnlineProbe:
    """Judges an encoder on a fixed, bounded part of the data.

    With labels, a bank of at most `probe_images` training images and as many test images (from `data.val`, else split
    off the bank) give kNN and a linear probe; features are made once for both and for the ranks.

    Attributes:
        main: the metric that decides which checkpoint is the best, or None without labels.
    """

    def __init__(self, config: RunConfig, source: Source, world: World) -> None:
        self.config, self.world = config, world
        self.normalise = Normalise(config.data.mean, config.data.std)
        self.bank = sampled(source, config.probe_images)
        self.test: Source | None = None
        self.classes = source.classes
        if source.labels is not None:
            if config.data.val is not None:
                self.test = sampled(open_source(config.data.val), config.probe_images)
            else:
                held_out = np.arange(len(self.bank)) % TEST_SHARE == 0
                self.bank, self.test = self.bank.subset(~held_out), self.bank.subset(held_out)
            if self.test.labels is None or len(self.test) == 0 or len(self.bank) < 2:
                self.test = None
        self.main = "probe/knn_top1" if self.test is not None else None
        self.rank_bound = len(self.bank)
        self.own_task = OwnTask(config, world)

    def judge(self, method: Method) -> dict[str, float]:
        """Return what the encoder is worth, and the classifier and the answers to its own task of a method with any."""
        return self(method.encoder) | self.classified(method) | self.own_task(method)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Return `rank/*` and, with labels, `probe/*` (percent)."""
        bank = self._features(encoder, self.bank)
        self.rank_bound = min(bank.tensor.shape)
        values = {
            "rank/rankme": float(rankme(bank.tensor)),
            "rank/std": float(per_dimension_std(bank.tensor).mean()) * bank.tensor.shape[1] ** 0.5,
        }
        if self.test is not None:
            test = self._features(encoder, self.test)
            knn, _ = vote(bank, test, KNNConfig(device=self.world.device.type))
            linear, _ = probe(bank, test, LinearConfig(epochs=20, device=self.world.device.type, seed=self.config.seed))
            values["probe/knn_top1"] = knn["top1"].value
            values["probe/linear_top1"] = linear["top1"].value
        return values

    def classified(self, method: Method) -> dict[str, float]:
        """Return `probe/classifier_top1` (percent) where the method has a classifier and there are held-out labels.

        Without a `val` of its own the test images are training images of some stage, so nothing is reported.
        """
        if self.test is None or self.config.data.val is None or self.test.labels is None:
            return {}
        size, training, right, count = self.config.encoder.image_size, method.training, 0, 0
        test = self.test.aligned(self.classes)
        method.eval()
        try:
            for batch in sweep(test, evaluation_views(size), batch_size=128, workers=self.config.workers):
                ready = batch.prepared(self.world.device, self.normalise)
                with torch.no_grad():
                    logits = method.classify(ready.views["eval"][0])
                if logits is None:
                    return {}
                right += int(torch.eq(logits.argmax(1), ready.labels_B).sum()) if ready.labels_B is not None else 0
                count += len(batch)
        finally:
            method.train(training)
        return {"probe/classifier_top1": 100.0 * right / max(1, count)}

    def _features(self, encoder: Encoder, source: Source) -> FeatureTable:
        return extract(
            encoder,
            source,
            image_size=self.config.encoder.image_size,
            normalise=self.normalise,
            workers=self.config.workers,
            device=str(self.world.device),
            cache=False,
        )


def sampled(source: Source, limit: int) -> Source:
    """Return at most `limit` samples: spread evenly over the source, or the first ones of a stream."""
    head = getattr(source, "head", None)  # a stream's; spreading would open all of its shards
    if head is not None:
        first: Source = head(limit)
        return first
    return source if len(source) <= limit else source.subset(spread(len(source), limit))
