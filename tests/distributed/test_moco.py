"""InfoNCE and shuffled groups of batch statistics: two processes equal one."""

from __future__ import annotations

import importlib

import pytest
import torch

from imprint.dist.world import World


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


def test_processes_that_do_not_divide_the_groups_are_told(moco_work, in_two):
    from imprint.core.errors import ConfigError

    with pytest.raises(ConfigError, match="3 groups of batch-norm statistics do not split over 2 processes"):
        in_two(moco_work.three_groups)
