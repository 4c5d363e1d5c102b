"""SwAV over two processes equals one: codes, loss, gradients, and steps through the filling of the queue."""

from __future__ import annotations

import importlib

import pytest
import torch

from imprint.dist.world import World
from imprint.losses.clustering import swapped_prediction
from imprint.ops.sinkhorn import sinkhorn


@pytest.fixture(scope="module")
def clustering(work):
    return importlib.import_module("clustering_work")


def test_codes_of_shares_are_those_of_the_whole(clustering, in_two):
    two = in_two(clustering.codes)
    for (name, scale), first in two[0].items():
        whole = sinkhorn(clustering.scores_of(2, scale), 0.05, 3)
        found = torch.cat([first, two[1][name, scale]], dim=1)
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_loss_and_gradient_of_halves_are_those_of_the_whole(clustering, in_two):
    two = in_two(clustering.loss)
    leaf = clustering.scores_of(4, 0.3).requires_grad_()
    value = swapped_prediction(leaf, sinkhorn(leaf[:2].detach(), 0.05, 3), 0.1)
    value.backward()
    for rank in two:
        torch.testing.assert_close(rank["loss"], value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([rank["grad"] for rank in two], dim=1), leaf.grad, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("queue", [0, 48, 50])
def test_steps_of_two_processes_are_those_of_one(clustering, in_two, queue):
    two = in_two(clustering.several_steps, queue)
    one = clustering.steps(queue, World())
    assert one["grads"][0] is None and one["grads"][2] is not None, "frozen, then free"
    for rank in two:
        torch.testing.assert_close(rank["losses"], one["losses"], rtol=1e-4, atol=1e-5)
        for step, grad in enumerate(one["grads"]):
            assert (rank["grads"][step] is None) == (grad is None)
            if grad is not None:
                torch.testing.assert_close(rank["grads"][step], grad, rtol=1e-2, atol=1e-4)
        assert rank["state"].keys() == one["state"].keys()
        for key, value in one["state"].items():
            torch.testing.assert_close(
                rank["state"][key], value, rtol=1e-2, atol=1e-3, msg=lambda m, k=key: f"{k}: {m}"
            )
    if queue:
        assert one["state"]["queue.filled"] == 5 * 16
        assert one["state"]["queue.features"].norm(dim=-1).min() > 0.99
        # The queue changed the assignments: without it the losses part once it is full.
        without = clustering.steps(0, World())["losses"]
        torch.testing.assert_close(without[:4], one["losses"][:4])
        assert (without[5] - one["losses"][5]).abs() > 1e-3
    for key, value in two[0]["state"].items():
        assert torch.equal(value, two[1]["state"][key]), key
