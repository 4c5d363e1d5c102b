"""SupCon and KoLeo with gathered keys: two processes equal one."""

from __future__ import annotations

import importlib

import pytest
import torch

from imprint.dist.world import World


@pytest.fixture(scope="module")
def workers(work):
    return importlib.import_module("positives_workers")


def test_losses_and_gradients_equal_one_process(workers, in_two):
    two, one = in_two(workers.losses), workers.losses_of(World())
    for name, (loss, grad) in one.items():
        for rank in two:
            torch.testing.assert_close(rank[name][0], loss, rtol=1e-12, atol=1e-12)
        halves = torch.cat([rank[name][1] for rank in two])
        assert grad.abs().max() > 1e-3
        torch.testing.assert_close(halves, grad, rtol=1e-10, atol=1e-12)
