"""How well a method solves its own task on images that it did not learn from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.data.loader import sweep
from imprint.data.sources import Source
from imprint.train.run import Run
from imprint.train.stages import rebuilt


@runtime_checkable
class Solver(Protocol):
    """A method whose task has right answers."""

    def solved(self, batch: Batch, t: Progress) -> Tensor:
        """Return for each image (B,) the share of its answers that are right."""


def pretext_accuracy(
    run: Run, source: Source, *, limit: int | None = None, batch_size: int = 128, device: str = "cpu", seed: int = 0
) -> float:
    """Return the percentage of right answers of a finished run's method on other images, in evaluation mode.

    Views, orders and jitter are drawn as in training, from keys of `seed` and the sample: the same call gives the same
    number.

    Args:
        run: a finished run of a method with a task of its own (rotation, jigsaw).
        source: held-out images.
        limit: use so many images, spread evenly.
        batch_size: images at a time.
        device: where to compute.
        seed: of the views.

    Raises:
        ConfigError: for a method whose task has no right answers.
    """
    method = rebuilt(run).to(device).eval()
    if not isinstance(method, Solver):
        raise ConfigError(f"'{run.config.name}' has no task with right answers; rotation and jigsaw have.")
    config = run.config
    normalise = Normalise(config.data.mean, config.data.std)
    views = method.views(config.method, config.encoder.image_size)
    total, count = 0.0, 0
    for batch in sweep(source, views, batch_size=batch_size, workers=config.workers, limit=limit, seed=seed):
        right_B = method.solved(batch.prepared(torch.device(device), normalise), Progress(0, 1, 1))
        total, count = total + float(right_B.sum()), count + len(batch)
    return 100.0 * total / max(1, count)
