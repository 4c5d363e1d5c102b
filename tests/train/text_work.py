"""What two processes do in test_texts.py, importable by its name in the children."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from imprint.core.progress import Epochs, Steps
from imprint.data.corpus import Corpus
from imprint.dist.world import World, init_from_env
from imprint.recipes.book import recipe
from imprint.train.config import RunConfig
from imprint.train.loop import train
from imprint.train.texts import read_texts

WORDS = ("a", "dog", "cat", "red", "car", "on", "the", "grass", "sky", "runs", "sits", "blue", "tree", "near")


def corpus(count: int = 60) -> Corpus:
    """Return documents of several sentences."""
    rng = np.random.default_rng(2)
    sentence = lambda: " ".join(rng.choice(WORDS, rng.integers(3, 9))) + "."  # noqa: E731
    return Corpus.of(("\n".join(sentence() for _ in range(12)) for _ in range(count)), "documents")


def config(**changes: object) -> RunConfig:
    """Return BERT's debug recipe with a probe."""
    plan = recipe("bert/debug")
    settings = {"device": "cpu", "workers": 1, "precision": "fp32", "probe_every": Epochs(1), **changes}
    return dataclasses.replace(plan, **settings)


def told(plan: RunConfig, folder: str, world: World) -> dict[str, object]:
    """Return what a process reads."""
    plan, reading = read_texts(plan, corpus(), Path(folder) / "run", world)
    assert reading is not None and reading.held_rows is not None
    rows = reading.rows.tokens(0, 1, np.arange(16))
    return {
        "tokenizer": reading.tokenizer.fingerprint,
        "rows": {name: torch.from_numpy(part) for name, part in rows.items()},
        "fingerprints": (reading.rows.fingerprint, reading.held_rows.fingerprint),
        "vocabulary": plan.method.vocabulary,  # type: ignore[attr-defined]
    }


def in_two(folder: str) -> None:
    """Read the same texts with both processes, and train together."""
    world = init_from_env("cpu")
    torch.save(told(config(), folder, world), Path(folder) / f"rank-{world.rank}.pt")
    train(config(length=Steps(4)), Path(folder) / "two", source=corpus())
