from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.backbones.layer_decay import layer_scales
from imprint.core.errors import CheckpointError
from imprint.core.schedules import constant
from imprint.methods.base import ParamGroup, split_decay
from imprint.train.config import LR, OptimConfig
from imprint.train.optim import (
    build_optimizer,
    load_optimizer,
    named_parameters,
    optimizer_tensors,
    set_rates,
)

CPU = torch.device("cpu")


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 16, 4))


def config(name: str, **changes) -> OptimConfig:
    return OptimConfig(name=name, lr=LR(base=0.1), weight_decay=constant(0.1), **changes)


def train(model, optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 2, 6, 6)).square().mean().backward()
        set_rates(optimizer, 0.01, 0.01, 0.1)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_fused_follows_torchs_plain_optimizer(name):
    ours, plain = net(), net()
    optimizer = build_optimizer(split_decay(ours.named_parameters()), config(name), CPU)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    groups = [
        {"params": g.params, "weight_decay": 0.1 if g.decay else 0.0, "lr": 0.01}
        for g in split_decay(plain.named_parameters())
    ]
    extra = {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.999), "eps": 1e-8}
    reference = kinds[name](groups, lr=0.01, foreach=False, **extra)
    for step in range(4):
        torch.manual_seed(step)
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        set_rates(optimizer, 0.01, 0.01, 0.1)
        optimizer.step()
        reference.step()
    for (key, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lars"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_state_goes_to_flat_tensors_and_back_to_the_bit(name, layout):
    whole = net().to(memory_format=layout)
    optimizer = build_optimizer(split_decay(whole.named_parameters()), config(name), CPU)
    train(whole, optimizer, 3)
    saved = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
    weights = copy.deepcopy(whole.state_dict())
    train(whole, optimizer, 3, first=3)
    other = net(seed=9).to(memory_format=layout)
    other.load_state_dict(weights)
    resumed = build_optimizer(split_decay(other.named_parameters()), config(name), CPU)
    load_optimizer(resumed, saved)
    assert optimizer_tensors(resumed).keys() == saved.keys()
    train(other, resumed, 3, first=3)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    kernel = "exp_avg" if name in ("adamw", "adam") else "momentum_buffer"
    assert resumed.state[other[0].weight][kernel].stride() == other[0].weight.stride()


def test_state_of_other_parameters_is_refused():
    model = net()
    optimizer = build_optimizer(split_decay(model.named_parameters()), config("sgd"), CPU)
    with pytest.raises(CheckpointError, match="another method or encoder"):
        load_optimizer(optimizer, {"momentum_buffer/somewhere.else": torch.zeros(3)})


def test_rates_follow_the_groups_flags():
    a, b, c = (nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    groups = [
        ParamGroup(name="plain", params=[a], names=["a"], decay=False, adapt=False),
        ParamGroup(name="scaled", params=[b], names=["b"], lr_scale=0.2),
        ParamGroup(name="constant", params=[c], names=["c"], constant_lr=True),
    ]
    optimizer = build_optimizer(groups, config("sgd"), CPU)
    set_rates(optimizer, lr=0.5, peak=2.0, weight_decay=0.1)
    found = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert found == {"plain": (0.5, 0.0), "scaled": (0.1, 0.1), "constant": (2.0, 0.1)}
    assert [g["adapt"] for g in optimizer.param_groups] == [False, True, True]
    everything = build_optimizer(groups, config("lars", adapt_all=True), CPU)
    assert all(g["adapt"] and g["decay"] for g in everything.param_groups)


def test_layer_decay_counts_blocks_from_the_head():
    torch.manual_seed(0)
    encoder = build_encoder(
        "vit_tiny_patch16_224", image_size=32, patch_size=8, arch={"depth": 3, "embed_dim": 24, "num_heads": 2}
    )
    method = nn.ModuleDict({"backbone": encoder, "head": nn.Linear(24, 5)})
    scales = layer_scales(method, 0.5)
    by_name = {name: scales.get(id(p), 1.0) for name, p in method.named_parameters()}
    assert by_name["head.weight"] == 1.0
    assert by_name["backbone.model.norm.weight"] == 1.0
    assert by_name["backbone.model.blocks.2.mlp.fc1.weight"] == 0.5
    assert by_name["backbone.model.blocks.0.attn.qkv.weight"] == 0.125
    assert by_name["backbone.model.patch_embed.proj.weight"] == by_name["backbone.model.cls_token"] == 0.0625
    optimizer = build_optimizer(split_decay(method.named_parameters()), config("adamw"), CPU, scales=scales)
    assert len(named_parameters(optimizer)) == len(list(method.parameters()))
    assert {round(g["lr_scale"], 4) for g in optimizer.param_groups} == {0.0625, 0.125, 0.25, 0.5, 1.0}
