"""Linear probe with augmentation: the encoder stays frozen, every epoch encodes new crops, all heads learn from them.

This is the papers' protocol (MoCo, arXiv 1911.05722, Sec. 4.1; MAE, arXiv 2111.06377, App. A.1): random resized crops
and flips. One pass of images through the encoder serves the whole grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imprint.data.loader import Loader
from imprint.data.view_recipes import probe_views
from imprint.evals.linear_heads import Heads, HeadTrainer
from imprint.evals.represent import pick_device, pick_precision, represent, resting
from imprint.evals.workspace import Workspace

if TYPE_CHECKING:
    from imprint.backbones.encoder import Encoder
    from imprint.data.batch import Normalise
    from imprint.data.sources import Source
    from imprint.evals.linear import LinearConfig


def fit_on_crops(
    encoder: Encoder,
    source: Source,
    normalise: Normalise,
    trainer_for: Callable[[int, int], HeadTrainer],
    config: LinearConfig,
    workspace: Workspace,
) -> Heads:
    """Train the grid on random crops of labelled images, from where a killed run of the same workspace was.

    Args:
        encoder: frozen, in evaluation mode meanwhile.
        source: the images to learn from.
        normalise: pixel normalisation.
        trainer_for: `trainer_for(steps per epoch, minibatch)` makes the untrained heads.
        config: epochs, minibatch, crop_scale and how images are encoded.
        workspace: where progress is kept.
    """
    place = pick_device(config.device, encoder)
    dtype = pick_precision(config.precision, place)
    batch_size = min(config.minibatch, len(source))
    views = probe_views(config.image_size or encoder.image_size, scale=config.crop_scale)

    def encode(images_BCHW: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
            parts = images_BCHW[:, : encoder.channels].split(config.batch_size)
            return torch.cat([represent(encoder, part, config.tokens, config.layers) for part in parts]).float()

    with (
        resting(encoder, place),
        Loader(
            source, views, batch_size=batch_size, seed=config.seed, workers=config.workers,
            pin_memory=place.type == "cuda",
        ) as loader,
    ):  # fmt: skip
        trainer = trainer_for(loader.steps_per_epoch, batch_size)
        found = workspace.load_state("heads")
        if found is not None:
            trainer.restore(found)
        kept = time.monotonic()
        home = trainer.mean_D.device
        for batch in loader.batches(trainer.done, trainer.total):
            ready = batch.prepared(place, normalise)
            assert ready.labels_B is not None  # the protocol has asked for labels
            trainer.step(encode(ready.views["global"][0]).to(home), ready.labels_B.to(home))
            if time.monotonic() - kept > workspace.every or trainer.done == trainer.total:
                workspace.save_state("heads", trainer.state())
                kept = time.monotonic()
    return trainer.heads()
