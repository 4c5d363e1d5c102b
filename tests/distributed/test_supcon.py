"""SupCon and KoLeo with gathered keys, and whole steps of SupCon, BYOL, SimSiam and NNCLR: two processes equal one."""

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


def test_steps_equal_one_process(workers, in_two):
    two = in_two(workers.steps)
    for name in workers.METHODS:
        one = workers.steps_of(name, World())
        for rank in two:
            for found, expected in zip(rank[name]["loss"], one["loss"], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert rank[name]["grads"].keys() == one["grads"].keys(), name
            for key, grad in one["grads"].items():
                scale = float(grad.norm()) + 1e-6
                error = float((rank[name]["grads"][key] - grad).norm()) / scale
                assert error < 1e-2 or scale < 1e-4, (name, key, error, scale)
            assert rank[name]["state"].keys() == one["state"].keys()
            for key, value in one["state"].items():
                torch.testing.assert_close(
                    rank[name]["state"][key], value, rtol=1e-2, atol=2e-3, msg=lambda m, k=key: f"{k}: {m}"
                )
        for key, value in two[0][name]["state"].items():  # and the two are the same to the bit
            assert torch.equal(value, two[1][name]["state"][key]), (name, key)
    support = two[0]["nnclr"]["state"]["support.keys"]
    assert int(two[0]["nnclr"]["state"]["support.filled"]) == 32 and support[:32].norm(dim=1).min() > 0.99
