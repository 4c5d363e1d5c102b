"""LARS against each public code's rule written as a loop over parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.train.lars import LARS, LarsVariant, adapts, lars_groups, trust_ratios

VARIANTS: tuple[LarsVariant, ...] = ("mocov3", "barlow", "simclr", "larc")
SHAPES = {"matrix": (4, 3), "kernel": (3, 2, 2, 2), "bias": (5,), "scale": (), "zero": (3, 2)}
MOMENTUM, TRUST, DECAY = 0.9, 0.02, 0.05


def weights(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for k, s in SHAPES.items()}
    if seed == 0:
        made["zero"] = made["zero"] * 0
    return {k: v.requires_grad_() for k, v in made.items()}


def reference(w: Tensor, g: Tensor, mu: Tensor, lr: float, variant: LarsVariant) -> tuple[Tensor, Tensor]:
    """One step for one parameter, written out."""
    if not adapts(w, variant):
        q, d = 1.0, g
    elif variant == "larc":
        if w.norm() == 0 or g.norm() == 0:
            q, d = 1.0, g
        else:
            q, d = float(TRUST * w.norm() / (g.norm() + DECAY * w.norm() + 1e-8)), g + DECAY * w
    else:
        d = g + DECAY * w
        q = float(TRUST * w.norm() / d.norm()) if w.norm() > 0 and d.norm() > 0 else 1.0
    if variant == "simclr":
        mu = MOMENTUM * mu + lr * q * d
        return w - mu, mu
    mu = MOMENTUM * mu + q * d
    return w - lr * mu, mu


@pytest.mark.parametrize("variant", VARIANTS)
def test_follows_the_rule_over_changing_rates(variant: LarsVariant) -> None:
    params = weights()
    expected = {k: (p.detach().clone(), torch.zeros_like(p)) for k, p in params.items()}
    optimizer = LARS(lars_groups(params.values(), variant, DECAY), momentum=MOMENTUM, trust=TRUST, variant=variant)
    for step, rate in enumerate([0.1, 0.3, 0.2, 0.0], start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, g in weights(seed=step).items():
            params[name].grad = g.detach() * (0.0 if (name, step) == ("kernel", 2) else 1.0)
        grads = {k: p.grad.clone() for k, p in params.items() if p.grad is not None}
        places = {k: p.data_ptr() for k, p in params.items()}
        optimizer.step()
        for name, p in params.items():
            assert p.data_ptr() == places[name]
            expected[name] = reference(expected[name][0], grads[name], expected[name][1], rate, variant)
            torch.testing.assert_close(p.detach(), expected[name][0], rtol=1e-12, atol=1e-13)


def test_exclusion_rules_differ_at_scalars_and_vectors() -> None:
    excluded = {v: {k for k, p in weights().items() if not adapts(p, v)} for v in VARIANTS}
    assert excluded == {"mocov3": {"bias", "scale"}, "barlow": {"bias"}, "simclr": {"bias", "scale"}, "larc": set()}
    groups = lars_groups(weights().values(), "barlow", 0.1)
    assert [(g["adapt"], g["weight_decay"], len(g["params"])) for g in groups] == [(True, 0.1, 4), (False, 0.0, 1)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_trust_ratio_is_scale_free(variant: LarsVariant) -> None:
    """An adapted step is proportional to the weight's own length, whatever the gradient's."""
    params, grads = [w.detach() for w in weights().values()], [g.detach() for g in weights(seed=1).values()]
    small = trust_ratios(params, grads, weight_decay=0.0, trust=TRUST, variant=variant)
    large = trust_ratios(params, [100 * g for g in grads], weight_decay=0.0, trust=TRUST, variant=variant)
    for w, g, a, b in zip(params, grads, small, large, strict=True):
        if adapts(w, variant) and w.norm() > 0:
            assert float(a / b) == pytest.approx(100, rel=1e-5)
            assert float(a * g.norm() / w.norm()) == pytest.approx(TRUST, rel=1e-5)
        else:
            assert float(a) == float(b) == 1.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_survives_saving(variant: LarsVariant) -> None:
    def make() -> tuple[dict[str, Tensor], LARS]:
        params = weights(torch.float32)
        return params, LARS(lars_groups(params.values(), variant, DECAY), lr=0.1, trust=TRUST, variant=variant)

    def advance(params: dict[str, Tensor], optimizer: LARS, steps: range) -> None:
        for step in steps:
            for name, g in weights(torch.float32, seed=step + 1).items():
                params[name].grad = g.detach()
            optimizer.step()

    straight, optimizer = make()
    advance(straight, optimizer, range(6))
    half, first = make()
    advance(half, first, range(3))
    resumed, second = make()
    for name, p in resumed.items():
        p.data.copy_(half[name].data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    advance(resumed, second, range(3, 6))
    for name in SHAPES:
        assert torch.equal(straight[name], resumed[name])


def test_parameters_without_gradient_and_mixed_dtypes() -> None:
    params = [torch.randn(3, 3, dtype=t).requires_grad_() for t in (torch.float32, torch.bfloat16, torch.float32)]
    before = [p.detach().clone() for p in params]
    optimizer = LARS(params, lr=50.0, weight_decay=0.1)
    for p in params[:2]:
        p.grad = torch.ones_like(p)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert not torch.equal(params[0], before[0]) and not torch.equal(params[1], before[1])
    assert torch.equal(params[2], before[2]) and params[2] not in optimizer.state


def test_no_call_per_parameter_and_no_read_of_values() -> None:
    """The operators dispatched do not grow with the number of parameters, but for the views of the ratio vector."""

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None):  # type: ignore[no-untyped-def]
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    def operators(count: int) -> list[str]:
        params = [torch.randn(4, 4).requires_grad_() for _ in range(count)]
        for p in params:
            p.grad = torch.randn(4, 4)
        optimizer = LARS(params, lr=0.1, weight_decay=0.1)
        optimizer.step()
        with Count() as seen:
            optimizer.step()
        return seen.names

    few, many = operators(3), operators(50)
    assert few == many
    assert not any("_local_scalar_dense" in name or "item" in name for name in many)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"variant": "moco3"}, "mocov3"),
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"trust": 0.0}, "trust"),
        ({"weight_decay": -0.1}, "decay"),
    ],
)
def test_wrong_options_are_named(options: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        LARS([torch.zeros(2, 2, requires_grad=True)], **options)
