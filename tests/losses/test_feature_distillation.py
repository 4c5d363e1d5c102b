import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.feature_distillation import feature_distance


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mse_is_the_mean_square_against_standardised_vectors():
    s, t = rows(3, 5), rows(3, 5, seed=1) * 7 + 2
    total = 0.0
    for i in range(3):
        wanted = (t[i] - t[i].mean()) / (t[i].var(unbiased=False) + 1e-5).sqrt()
        total += sum((s[i, d] - wanted[d]) ** 2 for d in range(5)) / 15
    assert feature_distance(s, t).item() == pytest.approx(total.item(), rel=1e-9)
    standard = torch.nn.functional.layer_norm(t, (5,))
    assert feature_distance(standard, t).item() == 0.0
    assert feature_distance(torch.zeros_like(s), t).item() == pytest.approx(1.0, abs=1e-5)


def test_cosine_is_one_minus_the_mean_cosine_and_knows_no_length():
    s, t = rows(3, 5), rows(3, 5, seed=1)
    angles = [1 - s[i] @ t[i] / (s[i].norm() * t[i].norm()) for i in range(3)]
    assert feature_distance(s, t, "cosine").item() == pytest.approx(sum(angles).item() / 3, rel=1e-9)
    assert feature_distance(3 * t, t, "cosine").item() == pytest.approx(0.0, abs=1e-12)
    assert feature_distance(-t, t, "cosine").item() == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_tokens_count_as_vectors_and_gradient_reaches_the_student_only(kind):
    s, t = rows(2, 4, 5).requires_grad_(), rows(2, 4, 5, seed=1).requires_grad_()
    loss = feature_distance(s, t, kind)
    assert loss.item() == pytest.approx(feature_distance(s.flatten(0, 1), t.flatten(0, 1), kind).item(), rel=1e-12)
    loss.backward()
    assert s.grad is not None and t.grad is None
    assert torch.autograd.gradcheck(lambda x: feature_distance(x, t.detach(), kind), (s,))
    halves = [feature_distance(s[i : i + 1], t[i : i + 1], kind).item() for i in range(2)]
    assert loss.item() == pytest.approx(sum(halves) / 2, rel=1e-12)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(kind, dtype):
    s, t = (rows(4, 8) * 100).to(dtype), (rows(4, 8, seed=1) * 1000).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = feature_distance(s, t, kind)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert loss.item() == pytest.approx(feature_distance(s.double(), t.double(), kind).item(), rel=1e-5)


def test_other_widths_are_refused():
    with pytest.raises(ConfigError, match="must be equal"):
        feature_distance(rows(2, 4), rows(2, 5))
