"""Recomputed activations: the same gradients and statistics, less kept for backward."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Steps
from imprint.data.arrays import ArraySource
from imprint.nn.branch import Branch
from imprint.nn.ema import frozen_copy
from imprint.recipes.book import recipe
from imprint.train.loop import train
from imprint.train.recompute import recompute_activations

NAMES = {
    "regnet": {"name": "regnety_002", "image_size": 64},
    "resnet": {"name": "resnet18", "image_size": 64},
    "vit": {"name": "vit_tiny_patch16_224", "image_size": 64, "arch": {"depth": 4}, "drop_path": 0.2},
    "swin": {"name": "swin_tiny_patch4_window7_224", "image_size": 224, "drop_path": 0.2},
}


def branch(kind):
    torch.manual_seed(0)
    encoder = build_encoder(**NAMES[kind])
    return Branch(encoder, torch.nn.Linear(encoder.embed_dim, 8)).train()


def passed(net, size):
    """Two views through the network and back: loss, gradients, buffers, and bytes kept for backward."""
    torch.manual_seed(1)
    x = torch.randn(2, 4, 3, size, size)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(2)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(x[:1], x[1:]).square().mean()
    held = sum(size for at, size in kept.items() if at not in own)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    return loss.detach(), grads, {n: b.clone() for n, b in net.named_buffers()}, held


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k == "swin" else k for k in NAMES])
def test_gradients_and_statistics_are_the_same_and_less_is_kept(kind):
    size = NAMES[kind]["image_size"]
    loss, grads, buffers, held = passed(branch(kind), size)
    net = branch(kind)
    recompute_activations(net)
    again, regrads, rebuffers, reheld = passed(net, size)
    assert torch.equal(loss, again)
    assert grads.keys() == regrads.keys() and buffers.keys() == rebuffers.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(regrads[name], grad, rtol=1e-4, atol=1e-6)
    for name, value in buffers.items():  # batch norms moved once per pass, not once more in backward
        assert torch.equal(rebuffers[name], value), name
    assert reheld < 0.6 * held, (reheld, held)


def test_teachers_are_left_alone_and_evaluation_works():
    student = branch("resnet")
    pair = torch.nn.ModuleList([student, frozen_copy(student)])
    recompute_activations(pair)
    hooks = [sum(bool(m._forward_pre_hooks) for m in side.modules()) for side in pair]
    assert hooks[0] > 10 and hooks[1] == 0
    pair.eval()
    with torch.no_grad():
        x = torch.randn(1, 2, 3, 64, 64)
        torch.testing.assert_close(pair[0](x), pair[1](x))


def test_an_encoder_that_cannot_says_so():
    from imprint.backbones.encoder import Encoder
    from imprint.core.errors import ConfigError

    class Plain(Encoder):
        name = "plain"

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

    with pytest.raises(ConfigError, match="plain"):
        recompute_activations(torch.nn.ModuleList([Plain()]))


@pytest.mark.parametrize("method", ["simclr", "dino", "mae"])
def test_a_run_with_it_follows_one_without(tmp_path, method):
    images = ArraySource(np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8))
    losses = []
    for on in (False, True):
        config = dataclasses.replace(
            recipe(f"{method}/debug"),
            device="cpu",
            precision="fp32",
            workers=1,
            length=Steps(3),
            checkpoint_activations=on,
        )
        run = train(config, tmp_path / str(on), source=images)
        losses.append([line["loss"] for line in run.metrics() if "loss" in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
