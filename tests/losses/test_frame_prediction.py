import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.frame_prediction import (
    gradient_difference,
    lp_error,
    normalised_tokens,
    psnr,
    sharpness,
    token_l1,
)


def frames(count=2, height=5, width=4, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.rand(count, 3, height, width, dtype=dtype), torch.rand(count, 3, height, width, dtype=dtype)


def naive_gradients(y, x, alpha):
    """Eq. 6 pixel by pixel, a mean for each direction."""
    down, across = [], []
    for b in range(y.shape[0]):
        for c in range(y.shape[1]):
            for i in range(y.shape[2]):
                for j in range(y.shape[3]):
                    if i:
                        true, made = abs(x[b, c, i, j] - x[b, c, i - 1, j]), abs(y[b, c, i, j] - y[b, c, i - 1, j])
                        down.append(abs(true - made) ** alpha)
                    if j:
                        true, made = abs(x[b, c, i, j - 1] - x[b, c, i, j]), abs(y[b, c, i, j - 1] - y[b, c, i, j])
                        across.append(abs(true - made) ** alpha)
    return sum(down) / len(down) + sum(across) / len(across)


@pytest.mark.parametrize("alpha", [1, 2, 1.5])
def test_gradient_difference_is_the_naive_loops(alpha):
    y, x = frames()
    torch.testing.assert_close(gradient_difference(y, x, alpha), naive_gradients(y, x, alpha))


def test_gradient_difference_sees_edges_and_not_brightness():
    y, x = frames()
    assert float(gradient_difference(x + 0.3, x)) < 1e-12
    assert float(gradient_difference(1 - x, x)) < 1e-12, "it compares sizes of steps, not their signs"
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert gradient_difference(blurred, x) > 0.1


def test_lp_is_the_mean_of_powers():
    y, x = frames()
    torch.testing.assert_close(lp_error(y, x, 1), (y - x).abs().mean())
    torch.testing.assert_close(lp_error(y, x, 2), ((y - x) ** 2).mean())


def test_gradients_reach_predictions_alone():
    y, x = (f.requires_grad_() for f in frames())
    (lp_error(y, x) + gradient_difference(y, x)).backward()
    assert x.grad is None and (y.grad != 0).any(dim=0).all()
    small_y, small_x = (f[:1, :1, :3, :3] for f in frames())
    assert torch.autograd.gradcheck(lambda z: gradient_difference(z, small_x, 2), (small_y.clone().requires_grad_(),))


def test_low_precision_is_computed_in_float32():
    y, x = (f.bfloat16() for f in frames())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = lp_error(y, x) + gradient_difference(y, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, lp_error(y.float(), x.float()) + gradient_difference(y.float(), x.float()))


def test_psnr_of_known_errors():
    _, x = frames()
    x = x * 0.5
    offset = torch.tensor([0.1, 0.01], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(psnr(x + offset, x), torch.tensor([20.0, 40.0], dtype=torch.float64))
    assert (psnr(x, x) == 100).all()
    skimage = pytest.importorskip("skimage.metrics")
    y, x = frames()
    for b in range(2):
        assert float(psnr(y, x)[b]) == pytest.approx(
            skimage.peak_signal_noise_ratio(x[b].numpy(), y[b].numpy(), data_range=1.0)
        )


def test_sharpness_is_the_naive_loops_on_values_from_minus_one_to_one():
    y, x = frames()
    for b in range(2):
        apart = []
        for c in range(3):
            for i in range(1, 5):
                for j in range(1, 4):
                    made, true = 2 * y[b, c] - 1, 2 * x[b, c] - 1
                    down = abs(abs(made[i, j] - made[i - 1, j]) - abs(true[i, j] - true[i - 1, j]))
                    across = abs(abs(made[i, j] - made[i, j - 1]) - abs(true[i, j] - true[i, j - 1]))
                    apart.append(float(down + across))
        expected = 10 * math.log10(2**2 / (sum(apart) / len(apart)))
        assert float(sharpness(y, x)[b]) == pytest.approx(expected)


def test_sharpness_falls_with_blur():
    _, x = frames(height=16, width=16)
    values = []
    for size in (3, 7):
        blurred = torch.nn.functional.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)
        values.append(float(sharpness(blurred, x).mean()))
    assert float(sharpness(x, x).min()) > 100 > values[0] > values[1]


def test_tokens_are_normalised_one_by_one_and_pass_gradients():
    tokens = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    found = normalised_tokens(tokens)
    for b in range(2):
        for k in range(3):
            one = tokens[b, k]
            expected = (one - one.mean()) / (one.var(correction=0) + 1e-5).sqrt()
            torch.testing.assert_close(found[b, k], expected)
    assert torch.autograd.grad(found.square().sum() + found[0, 0, 0], tokens)[0].abs().sum() > 0


def test_token_l1_is_the_mean_of_absolute_errors():
    y, x = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(token_l1(y, x), (y - x).abs().sum() / 48)


@pytest.mark.parametrize("loss", [lp_error, gradient_difference, psnr, sharpness, token_l1])
def test_shapes_that_differ_are_refused(loss):
    with pytest.raises(ConfigError, match="differ"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5))


def test_impossible_settings_are_refused():
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ConfigError, match="p must be"):
        lp_error(x, x, 3)
    with pytest.raises(ConfigError, match="alpha"):
        gradient_difference(x, x, 0.5)
    with pytest.raises(ConfigError, match="2 x 2"):
        gradient_difference(x[..., :1], x[..., :1])
