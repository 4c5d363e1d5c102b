"""Weights that favour rare colours keep predictions colourful; without them they fade (arXiv 1603.08511, Sec. 2.2)."""

from __future__ import annotations

import torch

from imprint.core.progress import Progress
from imprint.data.batch import Normalise
from imprint.ops.lab import rgb_to_lab

END = Progress(100, 100, 10)


def test_rebalanced_predictions_are_more_colourful(experiment):
    chroma = {}
    for name, uniform in (("rebalanced", 0.5), ("equal", 1.0)):
        outcome = experiment("colorization", steps=60, batch_size=32, uniform=uniform)
        pictures = outcome.method.eval().reconstruct(outcome.batch, END)
        lab = {key: rgb_to_lab(Normalise().undo(value)) for key, value in pictures.items()}
        chroma[name] = float(torch.linalg.vector_norm(lab["reconstruction"][:, 1:], dim=1).mean())
        truth = float(torch.linalg.vector_norm(lab["image"][:, 1:], dim=1).mean())
    assert chroma["rebalanced"] > 1.1 * chroma["equal"], (chroma, truth)
