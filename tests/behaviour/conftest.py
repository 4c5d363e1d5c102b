"""A small experiment: a narrow ResNet trained for a minute's share on bundled photographs, and what became of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from imprint.core.progress import Progress, Steps
from imprint.core.schedules import constant
from imprint.data.batch import Batch, Normalise
from imprint.data.loader import Loader
from imprint.data.photos import photos
from imprint.data.sources import Source
from imprint.evals.evaluate import evaluate
from imprint.methods.base import Method
from imprint.methods.catalog import method_class
from imprint.recipes.book import recipe
from imprint.train.config import LR, OptimConfig, RunConfig
from imprint.train.loop import build, train
from imprint.train.run import Run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an experiment left: its run, the method with its final weights, and one prepared batch of held-out images.

    Attributes:
        run: the finished run.
        method: with the weights of the last checkpoint, in training mode.
        batch: prepared views of held-out photographs.
    """

    run: Run
    method: Method
    batch: Batch

    def metric(self, name: str, last: int = 5) -> float:
        """Return the mean of a logged metric over the last lines that have it."""
        values = [line[name] for line in self.run.metrics() if name in line][-last:]
        return float(sum(values) / len(values))

    @property
    def warnings(self) -> str:
        """All warnings of the run as one text: what the trainer advised."""
        return "\n".join(str(line["warning"]) for line in self.run.metrics() if "warning" in line)

    def knn(self) -> float:
        """Return kNN top-1 (percent) of the exported encoder on held-out tiles of the photographs."""
        report = evaluate("knn", self.run.encoder(), "photos:train", "photos:test", image_size=32)
        return float(report.metrics[report.main].value)


Experiment = Callable[..., Outcome]


@pytest.fixture(scope="session")
def tiles() -> Source:
    """Training tiles of the bundled photographs."""
    return photos("train")


@pytest.fixture
def experiment(tmp_path_factory: pytest.TempPathFactory, tiles: Source) -> Experiment:
    """Return a function that trains a method's debug recipe with changes and returns the outcome."""

    def go(
        method: str,
        *,
        steps: int = 150,
        batch_size: int = 64,
        lr: float = 2e-3,
        optim: OptimConfig | None = None,
        encoder: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Outcome:
        base = recipe(f"{method}/debug")
        plan: RunConfig = dataclasses.replace(
            base,
            method=dataclasses.replace(base.method, **changes),
            encoder=dataclasses.replace(base.encoder, **(encoder or {})),
            optim=optim
            or OptimConfig(name="adamw", lr=LR(base=lr, rule="none", warmup=Steps(10)), weight_decay=constant(1e-4)),
            batch_size=batch_size,
            length=Steps(steps),
            checkpoint_every=Steps(steps),
            log_every=5,
            workers=1,
            device="cpu",
            precision="fp32",
            **(run or {}),
        )
        folder = tmp_path_factory.mktemp(method) / "run"
        done = train(plan, folder, source=tiles)
        return Outcome(done, *final(done, plan, folder))

    return go


def final(run: Run, plan: RunConfig, folder: Path) -> tuple[Method, Batch]:
    """Return the trained method and one prepared batch of held-out images."""
    from imprint.dist.world import current

    held_out = photos("test")
    method, loader = build(dataclasses.replace(plan, seed=1), held_out, folder, current())
    checkpoint = run.checkpoints.latest()
    assert checkpoint is not None and isinstance(loader, Loader)
    method.load_state_dict(checkpoint.tensors("model"))
    batch = next(iter(loader.batches(0, 1))).prepared(torch.device("cpu"), Normalise(plan.data.mean, plan.data.std))
    loader.close()
    assert isinstance(method, method_class(plan.name))
    return method.train(), batch


@torch.no_grad()
def end(outcome: Outcome) -> Progress:
    """Return the Progress at the end of an experiment."""
    return Progress(outcome.run.last_step, outcome.run.last_step, 10)
