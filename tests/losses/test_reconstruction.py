"""The masked patch loss against its equation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses.reconstruction import masked_patch_mse


def naive(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    terms = [
        ((pred[b, n] - target[b, n]) ** 2).mean()
        for b in range(pred.shape[0])
        for n in range(pred.shape[1])
        if mask[b, n]
    ]
    return torch.stack(terms).mean()


def sample(batch: int = 3, patches: int = 7, values: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(batch, patches, values, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(batch, patches, generator=generator) < 0.6
    return pred.to(dtype).requires_grad_(), target.to(dtype).requires_grad_(), mask


def test_equals_the_loops_and_only_masked_predictions_learn() -> None:
    pred, target, mask = sample()
    expected = naive(pred, target, mask)
    want = torch.autograd.grad(expected, pred)[0]
    loss = masked_patch_mse(pred, target, mask)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    (3 * loss).backward()
    torch.testing.assert_close(pred.grad, 3 * want)
    assert target.grad is None and pred.grad is not None
    assert (pred.grad[~mask] == 0).all() and (pred.grad[mask] != 0).all()


def test_gradcheck() -> None:
    pred, target, mask = sample()
    assert torch.autograd.gradcheck(lambda x: masked_patch_mse(x, target, mask), (pred,))


def test_closed_forms() -> None:
    ones = torch.ones(2, 4, 6)
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]])
    assert masked_patch_mse(ones, ones, mask).item() == 0.0
    assert masked_patch_mse(3 * ones, ones, mask).item() == pytest.approx(4.0)
    assert masked_patch_mse(3 * ones, ones, mask * 0).item() == 0.0


def test_halves_weighted_by_their_masked_patches_equal_the_whole() -> None:
    pred, target, mask = sample(batch=4)
    parts = [masked_patch_mse(pred[p], target[p], mask[p]) * mask[p].sum() for p in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close((parts[0] + parts[1]) / mask.sum(), masked_patch_mse(pred, target, mask))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_low_precision(dtype: torch.dtype, bound: float) -> None:
    pred, target, mask = sample(batch=5, patches=30, values=48)
    exact = masked_patch_mse(pred, target, mask)
    low = pred.detach().to(dtype).requires_grad_()
    loss = masked_patch_mse(low, target, mask)
    loss.backward()
    assert loss.dtype == torch.float32 and low.grad is not None and low.grad.dtype == dtype
    assert abs(loss.item() / exact.item() - 1) < bound
    huge = (torch.ones(2, 3, 4, dtype=dtype) * 1e4).requires_grad_()
    big = masked_patch_mse(huge, -huge.detach(), torch.ones(2, 3))
    big.backward()
    assert torch.isfinite(big) and huge.grad is not None and torch.isfinite(huge.grad).all()


def test_shapes_are_checked() -> None:
    pred, target, mask = sample()
    with pytest.raises(ConfigError, match="do not fit"):
        masked_patch_mse(pred, target[:, :-1], mask)
    with pytest.raises(ConfigError, match="do not fit"):
        masked_patch_mse(pred, target, mask[:, :-1])
