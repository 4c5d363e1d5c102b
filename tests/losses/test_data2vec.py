import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.data2vec import averaged_layers, data2vec_loss, spread
from imprint.losses.masked_regression import masked_smooth_l1


def layers_of(count=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [5 * torch.randn(4, 6, 8, generator=generator, dtype=dtype) + k for k in range(count)]


def test_choosing_tokens_first_or_last_is_the_same():
    layers, places = layers_of(), torch.tensor([0, 5, 11, 23])
    for rule in (
        {},
        {"instance_norm": True, "layer_norm": False},
        {"post_layer_norm": True},
        {"batch_norm": True, "post_instance_norm": True},
    ):
        whole = averaged_layers(layers, **rule)
        torch.testing.assert_close(averaged_layers(layers, places, **rule), whole[places])


def test_norms_are_taken_over_width_tokens_or_batch():
    layers = layers_of(1)
    each = averaged_layers(layers).view(4, 6, 8)
    torch.testing.assert_close(each.mean(2), torch.zeros(4, 6, dtype=torch.float64), atol=1e-9, rtol=0)
    channels = averaged_layers(layers, layer_norm=False, instance_norm=True).view(4, 6, 8)
    torch.testing.assert_close(channels.mean(1), torch.zeros(4, 8, dtype=torch.float64), atol=1e-9, rtol=0)
    batch = averaged_layers(layers, layer_norm=False, batch_norm=True)
    torch.testing.assert_close(batch.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)
    plain = averaged_layers(layers_of(2), layer_norm=False)
    torch.testing.assert_close(plain, torch.stack(layers_of(2)).mean(0).flatten(0, 1))
    with pytest.raises(ConfigError, match="no layers"):
        averaged_layers([])


def test_targets_carry_no_gradient_and_keep_float32():
    layers = [layer.bfloat16().requires_grad_() for layer in layers_of()]
    out = averaged_layers(layers)
    assert not out.requires_grad and out.dtype == torch.float32


def test_smooth_l1_in_both_widths_and_the_square():
    x, y = torch.randn(7, 9, requires_grad=True), torch.randn(7, 9)
    torch.testing.assert_close(masked_smooth_l1(x, y, 0.5), F.smooth_l1_loss(x, y, beta=0.5))
    torch.testing.assert_close(masked_smooth_l1(x, y), F.mse_loss(x, y))
    torch.testing.assert_close(masked_smooth_l1(x, y, 0.5, width="sqrt"), 3 * F.smooth_l1_loss(x, y, beta=0.5))
    torch.testing.assert_close(masked_smooth_l1(x, y, reduction="sum"), 7 * F.mse_loss(x, y))
    assert masked_smooth_l1(x[:0], y[:0]) == 0
    with pytest.raises(ConfigError, match="must both be"):
        masked_smooth_l1(x, y[:3])


def test_processes_with_unequal_rows_average_to_one():
    x, y = torch.randn(10, 4, dtype=torch.float64), torch.randn(10, 4, dtype=torch.float64)
    rows = torch.tensor(5.0)
    parts = [masked_smooth_l1(x[a:b], y[a:b], 1.0, rows=rows) for a, b in ((0, 3), (3, 10))]
    torch.testing.assert_close(sum(parts) / 2, masked_smooth_l1(x, y, 1.0))


def test_the_variance_term_over_processes_is_that_of_all_rows():
    x = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(spread(x), (x.var(0) + 1e-6).sqrt())
    halves = (x[:3], x[3:])
    sums = {
        5: sum(torch.cat([h.new_full((1,), len(h)), h.detach().sum(0)]) for h in halves),
        4: sum((h - x.detach().mean(0)).square().sum(0) for h in halves),
    }
    torch.testing.assert_close(spread(halves[0], lambda value: sums[value.numel()]), spread(x))
    (own,) = torch.autograd.grad(spread(x).sum(), x)
    (true,) = torch.autograd.grad((x.var(0) + 1e-6).sqrt().sum(), x)
    torch.testing.assert_close(own, true)


def test_the_variance_term_pushes_only_below_its_margin():
    wide, narrow = 10 * torch.randn(50, 4), 0.01 * torch.randn(50, 4)
    for x, more in ((wide, False), (narrow, True)):
        plain = data2vec_loss(x, x)
        assert plain == 0 and (data2vec_loss(x, x, var_weight=1.0) > 0) == more
    assert data2vec_loss(wide, narrow, scale=-1) == data2vec_loss(wide, narrow)
    torch.testing.assert_close(data2vec_loss(wide, narrow, scale=3.0), 3 * data2vec_loss(wide, narrow))
