import math

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.soft_targets import distillation_kl, hard_distillation, soft_cross_entropy, with_labels


def logits(rows=6, classes=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64).to(dtype)


def test_equals_the_double_loop_of_the_equation():
    s, t, temperature = logits(seed=1), logits(seed=2), 2.5
    total = 0.0
    for i in range(s.shape[0]):
        p = [math.exp(v / temperature) for v in t[i].tolist()]
        q = [math.exp(v / temperature) for v in s[i].tolist()]
        for a, b in zip(p, q, strict=True):
            total -= a / sum(p) * math.log(b / sum(q))
    expected = temperature**2 * total / s.shape[0]
    assert soft_cross_entropy(s, t, temperature).item() == pytest.approx(expected, rel=1e-12)
    entropy = temperature**2 * torch.special.entr(torch.softmax(t / temperature, 1)).sum(1).mean()
    assert distillation_kl(s, t, temperature).item() == pytest.approx(expected - entropy.item(), rel=1e-9)


def test_closed_forms():
    flat = torch.zeros(4, 7, dtype=torch.float64)
    assert soft_cross_entropy(flat, flat, 3.0).item() == pytest.approx(9 * math.log(7))
    assert distillation_kl(logits(), logits(), 0.1).item() == pytest.approx(0.0, abs=1e-15)
    assert hard_distillation(flat, logits(4, 7)).item() == pytest.approx(math.log(7))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_gradients_are_those_of_finite_differences_and_reach_the_student_only(temperature):
    s, t = logits(seed=3).requires_grad_(), logits(seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, t.detach(), temperature), (s,))
    assert torch.autograd.gradcheck(lambda x: distillation_kl(x, t.detach(), temperature, mean_over="elements"), (s,))
    (soft_cross_entropy(s, t, temperature) + hard_distillation(s, t)).backward()
    assert s.grad is not None and t.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_computed_wide_and_large_logits_stay_finite(dtype):
    s, t = logits(8, 11, 5, dtype).requires_grad_(), logits(8, 11, 6, dtype)
    exact = soft_cross_entropy(s.double(), t.double(), 2.0)
    assert soft_cross_entropy(s, t, 2.0).item() == pytest.approx(exact.item(), rel=1e-5)
    loss = soft_cross_entropy(s * 1e4, t * 1e4, 0.1) + distillation_kl(s * 1e4, -t * 1e4, 0.1)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(s.grad).all() and s.grad.dtype == dtype


def test_unlabelled_images_have_no_label_term_and_halves_average_to_the_whole():
    s, t = logits(8, 5, 7), logits(8, 5, 8)
    labels = torch.tensor([0, -1, 3, -1, -1, -1, 2, 1])
    whole = with_labels(s, labels, soft_cross_entropy(s, t), 0.25)
    known = labels >= 0
    expected = 0.75 * F.cross_entropy(s[known], labels[known], reduction="sum") / 8 + 0.25 * soft_cross_entropy(s, t)
    assert torch.allclose(whole, expected, rtol=1e-12)
    halves = [with_labels(s[h], labels[h], soft_cross_entropy(s[h], t[h]), 0.25) for h in (slice(4), slice(4, 8))]
    assert torch.allclose(torch.stack(halves).mean(), whole, rtol=1e-12)
    nobody = with_labels(s, torch.full((8,), -1), soft_cross_entropy(s, t), 0.25)
    assert torch.allclose(nobody, 0.25 * soft_cross_entropy(s, t))


def test_bad_input():
    with pytest.raises(ConfigError, match="equal non-empty"):
        soft_cross_entropy(logits(6, 5), logits(6, 4))
    with pytest.raises(ConfigError, match="positive number"):
        distillation_kl(logits(), logits(), 0.0)
    with pytest.raises(ConfigError, match="alpha"):
        with_labels(logits(), torch.zeros(6, dtype=torch.long), torch.zeros(()), 1.5)
    with pytest.raises(ConfigError, match="are no"):
        with_labels(logits(), torch.zeros(5, dtype=torch.long), torch.zeros(()), 0.5)
