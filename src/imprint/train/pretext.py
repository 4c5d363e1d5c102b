"""How well a method solves its own task on images that it did not learn from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.data.loader import sweep
from imprint.data.sources import Source, open_source
from imprint.dist.world import World
from imprint.methods.base import Method
from imprint.methods.catalog import method_class
from imprint.train.config import RunConfig
from imprint.train.run import Run

MOST = 128
"""Images at a time."""
ASKED = 1000
"""Images of `data.val` at most: with one answer each, right half of the time, the standard error is 1.6 % points."""


@runtime_checkable
class Solver(Protocol):
    """A method whose task has right answers."""

    def chance(self) -> float:
        """Return the share of right answers, 0 to 1, of one who guesses."""

    def solved(self, batch: Batch, t: Progress) -> Tensor:
        """Return for each image (B,) the share of its answers that are right."""


class OwnTask:
    """Asks the method of a run, while it trains, what it learns to answer, about the images of `data.val`.

    Runs without `data.val`, and methods whose task has no right answers, are asked nothing.

    Args:
        config: the run's; at most `ASKED` images are used, and no more than `probe_images`, spread evenly.
        world: this process.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        self.config, self.device = config, world.device
        asked = config.data.val if issubclass(method_class(config.name), Solver) else None
        self.source = None if asked is None else open_source(asked)
        self.batch_size = min(MOST, config.batch_size // (world.size * config.accumulate))  # training fits that many

    def __call__(self, method: Method) -> dict[str, float]:
        """Return `pretext/accuracy` and what guessing gives, `pretext/chance`, in percent; {} when nothing is asked."""
        if self.source is None or not isinstance(method, Solver):
            return {}
        training, limit = method.training, min(ASKED, self.config.probe_images)
        method.eval()
        try:
            found = _right(
                method, self.config, self.source, limit=limit, batch_size=self.batch_size, device=self.device
            )
        finally:
            method.train(training)
        return {"pretext/accuracy": found, "pretext/chance": 100.0 * method.chance()}


def pretext_accuracy(
    run: Run, source: Source, *, limit: int | None = None, batch_size: int = MOST, device: str = "cpu", seed: int = 0
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
    from imprint.train.stages import rebuilt  # stages build methods, and building imports the probe, which asks here

    method = rebuilt(run).to(device).eval()
    if not isinstance(method, Solver):
        raise ConfigError(f"'{run.config.name}' has no task with right answers; rotation and jigsaw have.")
    where = torch.device(device)
    return _right(method, run.config, source, limit=limit, batch_size=batch_size, device=where, seed=seed)


def _right(
    method: Method,
    config: RunConfig,
    source: Source,
    *,
    limit: int | None,
    batch_size: int,
    device: torch.device,
    seed: int = 0,
) -> float:
    """Return the percentage of right answers of a method in evaluation mode."""
    assert isinstance(method, Solver)
    normalise = Normalise(config.data.mean, config.data.std)
    views = method.views(config.method, config.encoder.image_size)
    total, count = 0.0, 0
    for batch in sweep(source, views, batch_size=batch_size, workers=config.workers, limit=limit, seed=seed):
        right_B = method.solved(batch.prepared(device, normalise), Progress(0, 1, 1))
        total, count = total + float(right_B.sum()), count + len(batch)
    return 100.0 * total / max(1, count)
