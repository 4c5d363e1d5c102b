"""MoCo on two processes equals MoCo on one: losses, gradients, queue, key encoder, running statistics, shuffle."""

from __future__ import annotations

import importlib

import pytest
import torch

from imprint.dist.world import World

METHODS = ("moco_v1", "moco_v2", "moco_v3")


@pytest.fixture
def moco_work(work):
    """The module `moco_processes`, importable by its name in the children, too (`work` puts the folder on the path)."""
    return importlib.import_module("moco_processes")


def test_info_nce_over_two_processes_equals_one(moco_work, in_two):
    two = in_two(moco_work.info_nce_parts)
    one = moco_work.info_nce_whole()
    for name in ("loss", "grad_q", "grad_k", "v3_loss", "v3_grad"):
        found = [rank[name] for rank in two]
        joined = torch.stack(found).mean(0) if found[0].ndim == 0 else torch.cat(found) / 2
        torch.testing.assert_close(joined, one[name], rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_shuffled_groups_over_two_processes_equal_one(moco_work, in_two):
    two = in_two(moco_work.shuffled_keys)
    one = moco_work.keys_of(World())
    for name in ("own", "out"):
        torch.testing.assert_close(torch.cat([rank[name] for rank in two]), one[name], rtol=1e-4, atol=1e-5)
    for rank in two:
        torch.testing.assert_close(rank["all"], one["all"], rtol=1e-4, atol=1e-5)
        for key, value in one["state"].items():
            torch.testing.assert_close(rank["state"][key], value, rtol=1e-4, atol=1e-5)
            assert torch.equal(value.isfinite(), torch.ones_like(value, dtype=torch.bool))


def test_steps_of_two_processes_equal_those_of_one(work, in_two):
    two = in_two(work.gradients, METHODS)
    for name in METHODS:
        one = work.one_step(name, World())
        for rank in two:
            torch.testing.assert_close(rank[name]["loss"], one["loss"], rtol=1e-4, atol=1e-5)
            assert rank[name]["grads"].keys() == one["grads"].keys(), name
            for key, grad in one["grads"].items():
                scale = float(grad.norm()) + 1e-6
                error = float((rank[name]["grads"][key] - grad).norm()) / scale
                # Biases before a batch norm have no gradient but rounding noise.
                assert error < 5e-3 or scale < 1e-4, (name, key, error, scale)
            assert rank[name]["state"].keys() == one["state"].keys()
            for key, value in one["state"].items():
                torch.testing.assert_close(
                    rank[name]["state"][key], value, rtol=1e-3, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}"
                )
        for key, value in two[0][name]["state"].items():  # and the two are the same to the bit
            assert torch.equal(value, two[1][name]["state"][key]), (name, key)
    queue = two[0]["moco_v1"]["state"]
    assert queue["queue.filled"] == 32 and queue["queue.pointer"] == 32


def test_processes_that_do_not_divide_the_groups_are_told(moco_work, in_two):
    from imprint.core.errors import ConfigError

    with pytest.raises(ConfigError, match="3 groups of batch-norm statistics do not split over 2 processes"):
        in_two(moco_work.three_groups)
