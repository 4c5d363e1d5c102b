import math

import pytest
import torch

from imprint.losses.frame_order import balanced_accuracy, choose_tuples, order_loss

NAMES = "abcde"


def words(uniforms, close=(False, False), **settings):
    tuples = choose_tuples(
        torch.tensor([uniforms]), torch.tensor([close]), **{"negatives": 0.75, "reverse": 0.5} | settings
    )
    return "".join(NAMES[i] for i in tuples.frames_B3[0].tolist()), int(tuples.ordered_B[0])


def test_each_tuple_of_the_paper():
    assert words((0.75, 0.0, 0.9)) == ("bcd", 1)
    assert words((0.74, 0.1, 0.9)) == ("bad", 0)
    assert words((0.74, 0.5, 0.9)) == ("bed", 0)
    assert words((0.75, 0.0, 0.49)) == ("dcb", 1)  # turned round, it is still in order
    assert words((0.0, 0.0, 0.49)) == ("dab", 0)
    assert words((0.0, 0.9, 0.0), reverse=0.0) == ("bed", 0)
    assert words((0.74, 0.0, 0.9), negatives=0.5) == ("bcd", 1)


def test_a_frame_that_looks_like_the_middle_one_is_not_put_in_its_place():
    assert words((0.0, 0.1, 0.9), close=(True, False)) == ("bed", 0)
    assert words((0.0, 0.9, 0.9), close=(False, True)) == ("bad", 0)
    assert words((0.0, 0.1, 0.9), close=(False, True)) == ("bad", 0)
    assert words((0.0, 0.9, 0.9), close=(True, True)) == ("bcd", 1)


def test_shares():
    torch.manual_seed(0)
    tuples = choose_tuples(torch.rand(20_000, 3), torch.zeros(20_000, 2, dtype=torch.bool), negatives=0.75, reverse=0.5)
    assert float(tuples.ordered_B.float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float((tuples.frames_B3[:, 0] == 3).float().mean()) == pytest.approx(0.5, abs=0.01)
    wrong = tuples.frames_B3[tuples.ordered_B == 0, 1]
    assert float((wrong == 4).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert set(wrong.tolist()) == {0, 4}


def test_loss_against_the_equation():
    torch.manual_seed(0)
    logits, ordered = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 0, 1])
    naive = sum(
        math.log(sum(math.exp(v) for v in row)) - row[k]
        for row, k in zip(logits.tolist(), ordered.tolist(), strict=True)
    )
    assert float(order_loss(logits, ordered)) == pytest.approx(naive / 6, rel=1e-12)
    assert order_loss(logits, ordered).dtype == torch.float64
    assert float(order_loss(torch.zeros(4, 2), ordered[:4])) == pytest.approx(math.log(2))
    extreme = order_loss(torch.tensor([[3e4, -3e4]] * 2, dtype=torch.float16), torch.tensor([1, 0]))
    assert extreme.dtype == torch.float32 and torch.isfinite(extreme)


def test_balanced_accuracy():
    ordered = torch.tensor([0, 0, 0, 1])
    always_wrong_order = torch.tensor([[1.0, 0.0]] * 4)
    assert float(balanced_accuracy(always_wrong_order, ordered)) == 0.5
    assert float(balanced_accuracy(torch.eye(2)[ordered], ordered)) == 1.0
    assert float(balanced_accuracy(torch.eye(2)[1 - ordered], ordered)) == 0.0
    assert float(balanced_accuracy(always_wrong_order[:3], ordered[:3])) == 0.75
