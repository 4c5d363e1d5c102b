"""Alone, every collective is the identity."""

from __future__ import annotations

import torch

from imprint.dist.collectives import (
    all_reduce_mean,
    all_reduce_sum,
    all_reduce_sum_with_grad,
    any_process,
    barrier,
    broadcast_object,
    gather_objects,
    gather_with_grad,
)


def test_identity_alone():
    x = torch.randn(3, 2, requires_grad=True)
    gathered, offset = gather_with_grad(x)
    assert gathered is x
    assert offset == 0
    assert all_reduce_sum_with_grad(x) is x
    for reduced in (all_reduce_sum(x), all_reduce_mean(x)):
        assert torch.equal(reduced, x)
        assert not reduced.requires_grad
    assert any_process(True)
    assert not any_process(False)
    assert broadcast_object("a") == "a"
    assert gather_objects(3) == [3]
    barrier()
