"""SimMIM reads hidden squares off their surroundings; with everything hidden there is nothing to read."""

from __future__ import annotations

import torch

from imprint.core.progress import Progress

END = Progress(100, 100, 10)


def test_hidden_squares_are_read_off_what_is_visible(experiment):
    errors = {}
    for name, ratio in (("healthy", 0.6), ("blind", 1.0)):
        outcome = experiment("simmim", steps=100, mask_ratio=ratio)
        with torch.no_grad():
            errors[name] = float(outcome.method(outcome.batch, END).loss)
    assert errors["healthy"] < 0.75 * errors["blind"], errors
