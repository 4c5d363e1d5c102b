import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses import gram
from imprint.losses.gram import gram_mse


def features(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 7, 6, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randn(5, 7, 9, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), y


def plain(x, y, level, negatives):
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    if level == "batch":
        x, y = x.flatten(0, 1), y.flatten(0, 1)
    s, t = x @ x.mT, y @ y.mT
    if negatives == "drop":
        s, t = s.relu(), t.relu()
    elif negatives == "drop_teacher":
        s, t = torch.where((s < 0) & (t < 0), 0.0, s), t.relu()
    return (s - t).square().mean()


@pytest.mark.parametrize("budget", [2**22, 150, 20])  # all at once, some images at a time, some rows at a time
@pytest.mark.parametrize("level", ["image", "batch"])
@pytest.mark.parametrize("negatives", ["keep", "drop", "drop_teacher"])
def test_loss_and_gradient_are_those_of_the_formula(monkeypatch, budget, level, negatives):
    monkeypatch.setattr(gram, "_BUDGET", budget)
    x, y = features()
    loss = gram_mse(x, y, level=level, negatives=negatives)
    (grad,) = torch.autograd.grad(2.0 * loss, x)
    expected = plain(x, y, level, negatives)
    (wanted,) = torch.autograd.grad(2.0 * expected, x)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-13)


def test_features_turned_together_cost_nothing():
    x, _ = features()
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    assert gram_mse(x, 3.0 * x.detach() @ turn) < 1e-25
    assert gram_mse(x, x.detach().flip(1)) > 1e-2


def test_low_precision_is_computed_in_float32():
    x, y = features(torch.bfloat16)
    loss = gram_mse(x * 1e4, y)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(x.grad).all()
    exact = plain(x.detach().double(), y.double(), "image", "keep")
    assert abs(loss.item() - exact.item()) < 2e-2 * exact.item()


def test_other_images_or_patches_are_refused():
    x, y = features()
    with pytest.raises(ConfigError, match="same images"):
        gram_mse(x, y[:, :-1])
    with pytest.raises(ConfigError, match="same images"):
        gram_mse(x[0], y[0])
