from __future__ import annotations

import pytest
import torch
from torch import nn

from imprint.train.gradients import clip_


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 2), "idle": nn.Linear(2, 2)})
    for i, p in enumerate([*net["a"].parameters(), *net["b"].parameters()]):
        p.grad = torch.randn_like(p) * (10.0 ** (i - 1))
    return net


def grads(net: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def test_global_equals_torch():
    net, oracle = model(), model()
    expected = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.5)
    norm = clip_(list(net.named_parameters()), "global", 0.5)
    assert torch.allclose(norm, expected)
    for name, grad in grads(net).items():
        torch.testing.assert_close(grad, grads(oracle)[name])


def test_per_tensor_clips_each_alone_and_leaves_small_ones():
    net = model()
    before = grads(net)
    clip_(list(net.named_parameters()), "tensor", 3.0)
    untouched = 0
    for name, grad in grads(net).items():
        norm = before[name].norm()
        scale = min(1.0, 3.0 / (float(norm) + 1e-6))
        untouched += scale == 1.0
        torch.testing.assert_close(grad, before[name] * scale)
    assert 0 < untouched < len(before)


def test_per_module_norms():
    net = model()
    before = grads(net)
    clip_(list(net.named_parameters()), "module", 2.0)
    for child in ("a", "b"):
        names = [n for n in before if n.startswith(child)]
        norm = torch.stack([before[n].norm() for n in names]).norm()
        scale = min(1.0, 2.0 / (float(norm) + 1e-6))
        for n in names:
            torch.testing.assert_close(grads(net)[n], before[n] * scale)


def test_without_a_limit_nothing_changes_and_the_norm_is_told():
    net = model()
    before = grads(net)
    norm = clip_(list(net.named_parameters()), "global", None)
    torch.testing.assert_close(norm, torch.stack([g.norm() for g in before.values()]).norm())
    assert all(torch.equal(before[n], g) for n, g in grads(net).items())


@pytest.mark.parametrize("kind", ["global", "tensor", "module"])
def test_a_non_finite_gradient_shows_in_the_norm(kind):
    net = model()
    net["a"].weight.grad[0, 0] = float("nan")
    assert not torch.isfinite(clip_(list(net.named_parameters()), kind, 1.0))


def test_no_gradients_at_all():
    assert clip_(list(nn.Linear(2, 2).named_parameters()), "global", 1.0) == 0
