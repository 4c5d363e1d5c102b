"""NT-Xent against its equation, closed forms, and itself in shards."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses import contrastive
from imprint.losses.contrastive import nt_xent, similarity_logits


def naive(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Equation 1 of SimCLR with two loops."""
    z = torch.cat([z1, z2])
    count = len(z)
    terms = []
    for i in range(count):
        p = (i + count // 2) % count
        sims = {j: (z[i] @ z[j]) / (z[i].norm() * z[j].norm()) / temperature for j in range(count) if j != i}
        terms.append(torch.logsumexp(torch.stack(list(sims.values())), 0) - sims[p])
    return torch.stack(terms).mean()


def views(pairs: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z1 = torch.randn(pairs, width, generator=generator, dtype=torch.float64)
    z2 = z1 + torch.randn(pairs, width, generator=generator, dtype=torch.float64)
    return z1.to(dtype).requires_grad_(), (3 * z2).to(dtype).requires_grad_()


@pytest.fixture(params=[4, 7, 4096], ids=lambda side: f"tile{side}")
def tile_side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    side: int = request.param
    monkeypatch.setattr(contrastive, "_side", lambda rows, device: side)
    return side


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0, 1e-4])
@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_equals_the_double_loop(tile_side: int, pairs: int, temperature: float) -> None:
    z1, z2 = views(pairs, 5)
    expected = naive(z1, z2, temperature)
    grads = torch.autograd.grad(expected, (z1, z2))
    loss = nt_xent(z1, z2, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    for got, want in zip(torch.autograd.grad(loss, (z1, z2)), grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12 / temperature)


def test_closed_forms() -> None:
    same = torch.ones(8, 3)
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(15), rel=1e-6)
    # Orthogonal pairs: one neighbour at cosine 1, 2N - 2 at cosine 0.
    eye = torch.eye(6, dtype=torch.float64)
    expected = math.log(math.exp(1 / 0.5) + 10) - 1 / 0.5
    assert nt_xent(eye, 7 * eye, 0.5).item() == pytest.approx(expected, rel=1e-12)
    one = torch.randn(1, 4)
    assert nt_xent(one, -one, 0.2).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 0.001])
def test_gradcheck_of_anchors_and_keys(temperature: float) -> None:
    z1, z2 = views(3, 4)
    k1, k2 = views(7, 4, seed=1)
    if temperature > 0.01:
        assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature), (z1, z2))

    def gathered(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return nt_xent(a, b, temperature, z1_all=c, z2_all=d, offset=2)

    assert torch.autograd.gradcheck(gathered, (z1, z2, k1, k2), eps=1e-7, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 0.002])
def test_shards_with_gathered_keys_equal_the_full_batch(tile_side: int, temperature: float) -> None:
    z1, z2 = views(10, 6)
    full = nt_xent(z1, z2, temperature)
    expected = torch.autograd.grad(full, (z1, z2))
    losses = [
        nt_xent(z1[part], z2[part], temperature, z1_all=z1 * 1, z2_all=z2 * 1, offset=part.start)
        for part in (slice(0, 4), slice(4, 8), slice(8, 10))
    ]
    # Means over unequal shards weigh by their sizes; the gradients of all processes sum at the keys.
    total = 0.4 * losses[0] + 0.4 * losses[1] + 0.2 * losses[2]
    torch.testing.assert_close(total, full, rtol=1e-11, atol=1e-12)
    for got, want in zip(torch.autograd.grad(total, (z1, z2)), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_identity_gather_takes_the_symmetric_path(monkeypatch: pytest.MonkeyPatch) -> None:
    z1, z2 = views(5, 4)
    monkeypatch.setattr(contrastive, "_GatheredNTXent", None)
    loss = nt_xent(z1, z2, 0.3, z1_all=z1, z2_all=z2)
    torch.testing.assert_close(loss, nt_xent(z1, z2, 0.3))


def test_no_gradient_where_none_is_wanted() -> None:
    z1, z2 = views(4, 4)
    keys = [k.detach() for k in views(6, 4, seed=2)]
    loss = nt_xent(z1, z2.detach(), 0.3, z1_all=keys[0], z2_all=keys[1], offset=1)
    loss.backward()
    assert z1.grad is not None and z1.grad.abs().sum() > 0
    assert z2.grad is None and keys[0].grad is None
    assert not nt_xent(z1.detach(), z2.detach(), 0.3).requires_grad


def test_gradient_is_scaled_by_what_follows() -> None:
    z1, z2 = views(6, 4)
    plain = torch.autograd.grad(nt_xent(z1, z2, 0.3), z1)[0]
    scaled = torch.autograd.grad(7.0 * nt_xent(z1, z2, 0.3), z1)[0]
    torch.testing.assert_close(scaled, 7.0 * plain)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_low_precision_stays_close(dtype: torch.dtype, bound: float, temperature: float) -> None:
    z1, z2 = views(40, 16)
    exact = nt_xent(z1, z2, temperature)
    exact.backward()
    a, b = (z.detach().to(dtype).requires_grad_() for z in (z1, z2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(a, b, temperature)
    loss.backward()
    assert loss.dtype == torch.float32 and a.grad is not None and a.grad.dtype == dtype and z1.grad is not None
    torch.testing.assert_close(loss.double(), exact, rtol=bound / temperature / 10, atol=0)
    gap = (a.grad.double() - z1.grad).norm() / z1.grad.norm()
    assert gap < bound / temperature


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-2, 1e-4])
def test_extreme_inputs_stay_finite(dtype: torch.dtype, temperature: float) -> None:
    z1, z2 = (torch.randn(33, 8) * scale for scale in (1e4, 1e-4))
    z1[3] = 0.0  # a dead row has no direction
    z1[5], z2[6] = z1[4], -z1[4]  # logits of 1 / tau on both sides
    leaves = [z.clamp(-6e4, 6e4).to(dtype).requires_grad_() for z in (z1, z2)]
    for loss in (
        nt_xent(leaves[0], leaves[1], temperature),
        nt_xent(leaves[0], leaves[1], temperature, z1_all=leaves[0] * 1, z2_all=leaves[1] * 1),
    ):
        assert torch.isfinite(loss)
        grads = torch.autograd.grad(loss, leaves, retain_graph=True)
        assert torch.isfinite(grads[0]).all()
        assert torch.isfinite(grads[1]).all() or dtype == torch.float16  # 1 / 1e-4 of length times 1 / tau overflows it
        assert (grads[0][3] == 0).all()


def test_memory_does_not_grow_with_the_square() -> None:
    """The largest tensor made is a tile; a 6,144 x 6,144 matrix would hold 38 million numbers."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.untyped_storage().nbytes() // out.element_size())
            return out

    z1, z2 = views(3072, 8, dtype=torch.float32)
    with Watch():
        nt_xent(z1, z2, 0.1).backward()
    assert 0 < largest <= 1024**2


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda z: nt_xent(z, z[:2], 0.1), "equal non-empty"),
        (lambda z: nt_xent(z[:0], z[:0], 0.1), "non-empty"),
        (lambda z: nt_xent(z, z, 0.0), "temperature"),
        (lambda z: nt_xent(z, z, float("nan")), "temperature"),
        (lambda z: nt_xent(z, z, 0.1, z1_all=z), "both"),
        (lambda z: nt_xent(z, z, 0.1, z1_all=z * 1, z2_all=z[:2]), "gathered"),
        (lambda z: nt_xent(z, z, 0.1, z1_all=z * 1, z2_all=z * 1, offset=1), "offset 1"),
    ],
)
def test_wrong_input_is_named(call: Callable[[Tensor], Tensor], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        call(torch.randn(4, 3))


def test_similarity_logits_are_cosines_over_temperature() -> None:
    x, y = torch.randn(3, 5), torch.randn(4, 5)
    expected = torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1) / 0.2
    torch.testing.assert_close(similarity_logits(x, y, 0.2), expected)
