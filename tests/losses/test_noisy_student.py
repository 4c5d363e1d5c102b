"""The joint cross entropy against its equation."""

import math

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.noisy_student import joint_cross_entropy

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
PSEUDO = torch.tensor([False, True, False, True, True, False])
SOFT = torch.softmax(torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 1)


def test_naive_loop_of_the_public_codes_formula():
    """(labelled mean * labelled + soft mean * unlabelled) / labelled."""
    total = 0.0
    for i in range(6):
        log_p = torch.log_softmax(LOGITS[i], 0)
        q = SOFT[i] if PSEUDO[i] else 0.9 * F.one_hot(LABELS[i], 4).double() + 0.1 / 4
        total -= float((q * log_p).sum())
    found = joint_cross_entropy(LOGITS, LABELS, SOFT, PSEUDO, smoothing=0.1, ratio=1.0)
    assert float(found) == pytest.approx(total / 3, rel=1e-12)


def test_without_teacher_and_with_hard_labels_it_is_smoothed_cross_entropy():
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(joint_cross_entropy(LOGITS, LABELS, smoothing=0.1), expected)
    hard = joint_cross_entropy(LOGITS, LABELS, None, PSEUDO, smoothing=0.1, ratio=1.0)
    torch.testing.assert_close(hard, 2 * expected)


def test_uniform_logits_give_log_k_and_unknown_labels_nothing():
    zeros = torch.zeros(4, 8)
    assert float(joint_cross_entropy(zeros, torch.tensor([0, 1, 2, 3]))) == pytest.approx(math.log(8))
    assert float(joint_cross_entropy(zeros, torch.tensor([0, -1, -1, 3]))) == pytest.approx(math.log(8) / 2)


def test_rounded_soft_labels_are_scaled_to_one():
    whole = joint_cross_entropy(LOGITS, LABELS, SOFT, PSEUDO)
    torch.testing.assert_close(joint_cross_entropy(LOGITS, LABELS, 0.5 * SOFT, PSEUDO), whole)


def test_gradient_reaches_the_logits_alone_and_is_p_minus_q():
    logits, soft = LOGITS.clone().requires_grad_(), SOFT.clone().requires_grad_()
    joint_cross_entropy(logits, LABELS, soft, torch.ones(6, dtype=torch.bool)).backward()
    assert soft.grad is None
    torch.testing.assert_close(logits.grad, (torch.softmax(LOGITS, 1) - SOFT) / 6)


def test_two_halves_average_to_the_whole():
    whole = joint_cross_entropy(LOGITS, LABELS, SOFT, PSEUDO, smoothing=0.1, ratio=1.0)
    halves = [
        joint_cross_entropy(LOGITS[a], LABELS[a], SOFT[a], PSEUDO[a], smoothing=0.1, ratio=1.0)
        for a in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_logits_in_low_precision_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=dtype, requires_grad=True)
    soft = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = joint_cross_entropy(logits, torch.tensor([0, 0]), soft, torch.tensor([True, False]), smoothing=0.1)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="other classes"):
        joint_cross_entropy(LOGITS, LABELS, SOFT[:, :3], PSEUDO)
    with pytest.raises(ConfigError, match="saying which rows"):
        joint_cross_entropy(LOGITS, LABELS, SOFT)
    with pytest.raises(ConfigError, match=r"no \(B, K\)"):
        joint_cross_entropy(LOGITS, LABELS[:3])
    with pytest.raises(ConfigError, match="smoothing"):
        joint_cross_entropy(LOGITS, LABELS, smoothing=1.0)
