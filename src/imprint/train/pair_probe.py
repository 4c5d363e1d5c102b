"""Online evaluation of image-text methods: ranks of the image features, and retrieval among held-out pairs."""

from __future__ import annotations

import numpy as np
import torch

from imprint.backbones.dual_encoder import require_dual
from imprint.data.pairs import PairSource
from imprint.data.sources import spread
from imprint.dist.world import World
from imprint.evals.image_text_features import joint_images, text_features
from imprint.evals.retrieval import RetrievalConfig
from imprint.methods.base import Method
from imprint.ops.retrieval import first_ranks, recall_at
from imprint.train.config import RunConfig
from imprint.train.probe import OnlineProbe
from imprint.train.texts import Reading

_AMONG = 10


class PairProbe(OnlineProbe):
    """Judges the image tower by ranks, and both towers by retrieval among at most `probe_images` held-out images.

    Attributes:
        main: `probe/r@10`, the mean over both ways, or None without held-out pairs.
    """

    def __init__(self, config: RunConfig, reading: Reading, world: World) -> None:
        assert isinstance(reading.train, PairSource)
        super().__init__(config, reading.train.images, world)
        held = reading.held
        assert held is None or isinstance(held, PairSource)
        if held is not None and len(held) > config.probe_images:
            held = held.subset(spread(len(held), config.probe_images))
        self.held = held
        self.main = "probe/r@10" if held is not None else None

    def judge(self, method: Method) -> dict[str, float]:
        """Return the ranks of the image features, and R@1 and R@10 (percent) of held-out pairs, each way's mean."""
        values = super().judge(method)
        if self.held is None:
            return values
        encoder = require_dual(method.encoder, self.config.name)
        size, where = self.config.encoder.image_size, str(self.world.device)
        settings = RetrievalConfig(image_size=size, workers=self.config.workers, device=where, cache=False)
        table, images_NE = joint_images(encoder, self.held.images, self.normalise, settings)
        texts_ME = text_features(encoder, self.held.captions, settings).tensor
        kept = np.isin(self.held.caption_image, table.index_N)
        owner_M = torch.from_numpy(np.searchsorted(table.index_N, self.held.caption_image[kept]).astype(np.int64))
        texts_ME, group_N = texts_ME[torch.from_numpy(kept)], torch.arange(len(table))
        ways = (
            first_ranks(texts_ME, owner_M, images_NE, group_N),
            first_ranks(images_NE, group_N, texts_ME, owner_M),
        )
        for k in (1, _AMONG):
            values[f"probe/r@{k}"] = 100.0 * float(np.mean([recall_at(ranks, k) / len(ranks) for ranks in ways]))
        return values
