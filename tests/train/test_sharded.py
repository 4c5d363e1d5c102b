"""Who owns what, and a sharded optimizer of a process alone."""

from __future__ import annotations

import pytest
import torch

from imprint.core.schedules import constant
from imprint.methods.base import split_decay
from imprint.train.config import LR, OptimConfig
from imprint.train.optim import build_optimizer
from imprint.train.sharded import ShardedOptimizer, owners


def test_shares_are_balanced_and_the_same_everywhere():
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (5, 100, 40, 60, 3, 100, 7, 90)]
    found = owners(params, 3)
    assert list(found) == params
    load = [sum(p.numel() for p in params if found[p] == r) for r in range(3)]
    assert sum(load) == 405 and max(load) - min(load) <= 60
    assert owners(params, 1) == dict.fromkeys(params, 0)
    assert {owners(params[:1], 4)[params[0]]} == {0}


def test_a_process_alone_gets_the_plain_optimizer():
    net = torch.nn.Linear(3, 2)
    config = OptimConfig(name="adamw", lr=LR(base=0.1))
    assert type(build_optimizer(split_decay(net.named_parameters()), config, torch.device("cpu"), shard=(0, 1))) is (
        torch.optim.AdamW
    )


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lars"])
def test_groups_are_whole_and_state_is_the_share(name, monkeypatch):
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    config = OptimConfig(name=name, lr=LR(base=0.1), weight_decay=constant(0.1))
    made = build_optimizer(split_decay(net.named_parameters()), config, torch.device("cpu"), shard=(1, 2))
    assert isinstance(made, ShardedOptimizer)
    monkeypatch.setattr(made, "_exchange", lambda: None)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for group in made.param_groups:
        group["lr"] = 0.1
    made.step()
    assert sum(len(group["params"]) for group in made.param_groups) == 4
    for parameter_name, parameter in net.named_parameters():
        assert (not torch.equal(parameter, before[parameter_name])) is made.owns(parameter)
        assert (parameter in made.state) is made.owns(parameter)
    made.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in net.parameters())
    flag = torch.ones(())
    made.found_inf = flag
    assert made.inner.found_inf is flag and made.found_inf is flag
    assert made.defaults.get("fused") == made.inner.defaults.get("fused")
