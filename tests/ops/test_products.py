"""Products of rows by rows, whatever library makes them."""

from __future__ import annotations

import pytest
import torch

from imprint.ops.products import rows_by_rows


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 5), (130, 1024, 384), (10, 31, 1024), (0, 4, 3)])
def test_equals_the_product_in_float64(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    generator = torch.Generator().manual_seed(m)
    a, b = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    want = (a.double() @ b.double().T).float()
    torch.testing.assert_close(rows_by_rows(a, b), want, rtol=1e-4, atol=1e-4)
    transposed = b.T.contiguous().T
    torch.testing.assert_close(rows_by_rows(a, transposed), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows_by_rows(a.double(), b.double()), want.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(rows_by_rows(a, b), rows_by_rows(a, b))
