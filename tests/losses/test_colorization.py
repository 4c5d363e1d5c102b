import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.colorization import colour_cross_entropy, sparse_cross_entropy


def case(pixels=37, width=6, bins=19, nearest=5, dtype=torch.float64):
    torch.manual_seed(0)
    z = torch.randn(pixels, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(bins, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(bins, dtype=dtype, requires_grad=True)
    index = torch.stack([torch.randperm(bins)[:nearest] for _ in range(pixels)])
    share = torch.rand(pixels, nearest, dtype=dtype).softmax(1)
    boost = torch.rand(pixels, dtype=dtype) * 3
    boost[5] = 0  # a pixel of a grey image
    return z, weight, bias, index, share, boost


def dense(z, weight, bias, index, share, boost):
    """Eq. 2 with the whole table of targets."""
    targets = torch.zeros(len(z), len(weight), dtype=z.dtype).scatter_(1, index, share)
    log_p = torch.log_softmax(z @ weight.T + bias, 1)
    return -(boost * (targets * log_p).sum(1)).mean()


@pytest.mark.parametrize("rows", [None, 1, 10, 37])
def test_loss_and_gradients_equal_the_dense_table(rows):
    z, weight, bias, index, share, boost = case()
    expected = dense(z, weight, bias, index, share, boost)
    wanted = torch.autograd.grad(expected, (z, weight, bias))
    loss, right = colour_cross_entropy(z, weight, bias, index, share * boost[:, None], rows=rows)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(3 * loss, (z, weight, bias))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, 3 * b)
    hits = ((z @ weight.T + bias).argmax(1) == index[:, 0]).double().mean()
    torch.testing.assert_close(right, hits)
    assert not right.requires_grad and (found[0][5] == 0).all()


def test_sparse_targets_against_finite_differences():
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[0, 3], [1, 6], [5, 2], [4, 0]])
    mass = torch.rand(4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sparse_cross_entropy(x, index, mass), (logits,))


def test_uniform_predictions_cost_the_logarithm_of_the_classes():
    index = torch.arange(5).expand(8, 5)
    loss = sparse_cross_entropy(torch.zeros(8, 313), index, torch.full((8, 5), 0.2))
    torch.testing.assert_close(loss, 8 * torch.tensor(313.0).log())


def test_extreme_logits_in_low_precision_stay_finite():
    for dtype in (torch.float16, torch.bfloat16):
        logits = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
        loss = sparse_cross_entropy(logits, torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.5]]))
        loss.backward()
        assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_the_product_is_in_low_precision_and_the_loss_is_not():
    z, weight, bias, index, share, boost = case(dtype=torch.float32)
    exact = dense(z, weight, bias, index, share, boost)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = colour_cross_entropy(z, weight, bias, index, share * boost[:, None])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    loss.backward()
    assert z.grad.dtype == torch.float32 and bias.grad.shape == bias.shape


def test_shapes_that_do_not_fit_are_refused():
    z, weight, bias, index, share, _ = case()
    with pytest.raises(ConfigError, match="do not fit together"):
        colour_cross_entropy(z, weight[:, 1:], bias, index, share)
    with pytest.raises(ConfigError, match="do not fit together"):
        colour_cross_entropy(z, weight, bias, index[1:], share[1:])
    with pytest.raises(ConfigError, match=r"\(P, Q\), \(P, K\)"):
        sparse_cross_entropy(torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 1))
