import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.sigreg import random_directions, sigreg

CPU = torch.device("cpu")


def naive(z, a, points=17, t_max=3.0):
    """The definition: every sample, direction and point."""
    t = torch.linspace(0, t_max, points, dtype=z.dtype)
    normal = torch.exp(-t.square() / 2)
    total = 0
    for view in z:
        for direction in a.T:
            x = view @ direction
            off = torch.exp(1j * x[:, None] * t).mean(0) - normal
            total = total + 2 * torch.trapezoid(off.abs().square() * normal, t) * len(view)
    return total / (z.shape[0] * a.shape[1])


@pytest.mark.parametrize(("points", "t_max"), [(17, 3.0), (2, 1.0), (9, 5.0)])
def test_value_and_gradient_are_the_definition(points, t_max):
    z = torch.randn(3, 20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    a = random_directions(6, 11, 1, CPU).double()
    value, expected = sigreg(z, a, points=points, t_max=t_max), naive(z, a, points, t_max)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(3 * value, z)[0], torch.autograd.grad(3 * expected, z)[0], rtol=1e-9, atol=1e-13
    )


def test_parts_change_nothing(monkeypatch):
    z, a = torch.randn(2, 30, 6, dtype=torch.float64, requires_grad=True), random_directions(6, 50, 1, CPU)
    value = sigreg(z, a)
    (whole,) = torch.autograd.grad(value, z)
    monkeypatch.setattr(
        "imprint.losses.sigreg._chunks",
        lambda views, batch, slices, device: [
            (v, slice(s, min(s + 7, slices))) for v in range(views) for s in range(0, slices, 7)
        ],
    )
    parts = sigreg(z, a)
    torch.testing.assert_close(parts, value)
    torch.testing.assert_close(torch.autograd.grad(parts, z)[0], whole)


def test_closed_forms():
    """N(0, 1) gives sqrt(2 pi) (1 - 1 / sqrt 3) on average; a point mass sqrt(2 pi) (1 - sqrt 2 + 1 / sqrt 3) N."""
    a = random_directions(4, 64, 0, CPU)
    fine = {"points": 201, "t_max": 10.0}
    rows = [torch.randn(1, 500, 4, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    mean = torch.stack([sigreg(z, a, **fine) for z in rows]).mean()
    assert mean == pytest.approx(math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3)), rel=0.15)
    point = sigreg(torch.zeros(1, 500, 4), a, **fine)
    assert point == pytest.approx(500 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3)), rel=1e-4)


def test_it_grows_for_all_that_is_not_an_isotropic_gaussian():
    generator = torch.Generator().manual_seed(0)
    count, width = 2000, 8
    gaussian = torch.randn(1, count, width, generator=generator)
    a = random_directions(width, 512, 0, CPU)
    healthy = sigreg(gaussian, a)
    assert healthy < 2
    stretched = gaussian * torch.linspace(0.2, 1.8, width)
    lower_rank = gaussian.clone()
    lower_rank[..., width // 2 :] = lower_rank[..., : width // 2]
    uniform = (torch.rand(1, count, 2, generator=generator) - 0.5) * 12**0.5  # unit variance, wrong shape
    cases = {
        "collapsed": gaussian * 0.01,
        "wide": gaussian * 2,
        "shifted": gaussian + 0.5,
        "anisotropic": stretched,
        "redundant": lower_rank,
    }
    for name, z in cases.items():
        assert sigreg(z, a) > 5 * healthy, name
    assert sigreg(uniform, random_directions(2, 512, 0, CPU)) > 5 * healthy


def test_descent_makes_a_collapsed_cloud_gaussian():
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(1, 256, 4, generator=generator) * torch.tensor([0.05, 0.1, 0.5, 1.5]) + 0.5).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.05)
    first = sigreg(z, random_directions(4, 64, 0, CPU)).item()
    for step in range(150):
        optimizer.zero_grad()
        sigreg(z, random_directions(4, 64, step, CPU)).backward()
        optimizer.step()
    assert sigreg(z, random_directions(4, 64, 999, CPU)) < 1 < first / 20
    low, middle, high = (z.detach()[0].quantile(q, dim=0) for q in (0.16, 0.5, 0.84))
    assert middle.abs().max() < 0.2 and (high - low - 2).abs().max() < 0.4, (low, middle, high)


def test_low_precision_is_computed_in_float32_and_far_values_stay_finite():
    z, a = torch.randn(2, 16, 6), random_directions(6, 8, 0, CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sigreg(z, a), sigreg(z, a).float())
    exact = sigreg(z.double(), a.double())
    assert sigreg(z, a) == pytest.approx(float(exact), rel=1e-5)
    low = (z * 1e4).bfloat16().requires_grad_()
    value = sigreg(low, a)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and low.grad.isfinite().all()
    assert low.grad.dtype == torch.bfloat16


def test_directions_are_unit_and_follow_the_seed():
    a = random_directions(5, 100, 3, CPU)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(100))
    state = torch.random.get_rng_state()
    assert torch.equal(a, random_directions(5, 100, 3, CPU)) and not torch.equal(a, random_directions(5, 100, 4, CPU))
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is not touched"


def test_misfits_are_named():
    a = random_directions(6, 4, 0, CPU)
    for z in (torch.zeros(3, 6), torch.zeros(1, 0, 6), torch.zeros(1, 3, 5)):
        with pytest.raises(ConfigError, match=r"\(V, B, D\)"):
            sigreg(z, a)
    with pytest.raises(ConfigError, match="quadrature"):
        sigreg(torch.zeros(1, 3, 6), a, points=1)
    z = torch.randn(1, 3, 6, requires_grad=True)
    value = sigreg(z, a)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        value.backward()
