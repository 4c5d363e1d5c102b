"""Whitening: identity covariance, equality with the loop, and what cannot be whitened."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError, HealthError
from imprint.ops.whitening import whiten


def loop(h: Tensor, perms: Tensor, size: int, eps: float) -> Tensor:
    """One sub-batch after the other, with an explicit inverse."""
    out = []
    for view in h:
        for perm in perms:
            for rows in perm.split(size):
                centred = view[rows] - view[rows].mean(0)
                cov = (1 - eps) * torch.cov(view[rows].T) + eps * torch.eye(h.shape[-1], dtype=h.dtype)
                out.append(centred @ torch.linalg.inv(torch.linalg.cholesky(cov)).T)
    return torch.stack(out).view(len(h), len(perms), -1, size, h.shape[-1])


def rows_of(views: int = 3, rows: int = 24, width: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(views, rows, width, generator=generator, dtype=torch.float64)
    return (mixed @ torch.randn(width, width, generator=generator, dtype=torch.float64) + 7).to(dtype)


@pytest.mark.parametrize("size", [6, 8, 24])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_equals_the_loop_and_its_gradient(size: int, eps: float) -> None:
    h = rows_of().requires_grad_()
    perms = torch.stack([torch.randperm(24) for _ in range(2)])
    z, expected = whiten(h, perms, size=size, eps=eps), loop(h, perms, size, eps)
    torch.testing.assert_close(z, expected)
    weight = torch.randn_like(z)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), h)[0] for out in (z, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_every_sub_batch_has_mean_zero_and_covariance_one() -> None:
    z = whiten(rows_of(), torch.randperm(24)[None], size=12)
    assert float(z.mean(-2).abs().max()) < 1e-12
    for part in z.flatten(0, 2):
        torch.testing.assert_close(torch.cov(part.T), torch.eye(4, dtype=torch.float64))


def test_rows_follow_the_permutation_in_all_views() -> None:
    h = rows_of()
    perm = torch.randperm(24)
    moved, plain = whiten(h, perm[None], size=24), whiten(h, torch.arange(24)[None], size=24)
    torch.testing.assert_close(moved[:, 0, 0], plain[:, 0, 0, perm])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_bears_dimensions_of_very_different_scale(dtype: torch.dtype) -> None:
    h = torch.randn(2, 128, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 4, 32)
    h = h.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z = whiten(h, torch.arange(128)[None], size=128)
    z.square().sum().backward()
    assert z.dtype == torch.float32 and torch.isfinite(h.grad).all()
    torch.testing.assert_close(torch.cov(z[0, 0, 0].detach().T), torch.eye(32), rtol=1e-3, atol=1e-3)


def test_dimensions_that_are_constant_are_named_and_shrinkage_is_the_cure() -> None:
    h = rows_of()
    h[..., 2] = 1.0
    with pytest.raises(HealthError, match="w-eps"):
        whiten(h, torch.arange(24)[None], size=12)
    assert torch.isfinite(whiten(h, torch.arange(24)[None], size=12, eps=1e-3)).all()


def test_sizes_that_cannot_be_are_refused() -> None:
    h, perm = rows_of(), torch.arange(24)[None]
    with pytest.raises(ConfigError, match="w_size > 4"):
        whiten(h, perm, size=4)
    with pytest.raises(ConfigError, match="multiple of w_size"):
        whiten(h, perm, size=7)
    with pytest.raises(ConfigError, match="permutations"):
        whiten(h, torch.arange(12)[None], size=12)
    with pytest.raises(ConfigError, match="eps"):
        whiten(h, perm, size=12, eps=1.0)
