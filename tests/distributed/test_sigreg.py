"""SIGReg and CAPI's balanced clusters over two processes are those of one."""

from __future__ import annotations

import importlib

import pytest
import torch


@pytest.fixture(scope="module")
def job(work):
    return importlib.import_module("sigreg_work")


def test_sigreg_of_halves_is_that_of_the_whole(job, in_two):
    two = in_two(job.sigreg_of_halves)
    one = job.gaussian(job.embeddings(), job.SAME)
    for rank in two:
        torch.testing.assert_close(rank["value"], one["value"], rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([r["grad"] for r in two], dim=1), one["grad"], rtol=1e-9, atol=1e-14)
    own = job.gaussian(job.embeddings()[:, :6], job.SAME)
    assert (own["value"] - one["value"]).abs() > 0.1, "a half by itself says something else"


@pytest.mark.parametrize("positionwise", [True, False])
def test_clusters_of_halves_are_those_of_the_whole(job, in_two, positionwise):
    two = in_two(job.clustering_of_halves, positionwise)
    one = job.clustering(*job.patches(), positionwise)
    for rank in two:
        for name in ("loss", "weight", "bias"):
            torch.testing.assert_close(rank[name], one[name], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.cat([r["targets"] for r in two]), one["targets"], rtol=1e-9, atol=1e-12)
