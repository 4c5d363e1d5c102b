"""The distance over all pairs against the double loop."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.w_mse import positive_distance


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("norm", [True, False])
def test_equals_the_loop_over_pairs(views: int, norm: bool) -> None:
    z = torch.randn(views, 2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    terms = [
        2 - 2 * F.cosine_similarity(z[i], z[j], dim=-1).mean() if norm else F.mse_loss(z[i], z[j])
        for i, j in itertools.combinations(range(views), 2)
    ]
    expected = torch.stack(terms).mean()
    loss = positive_distance(z, norm=norm)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], torch.autograd.grad(expected, z)[0])


def test_equal_and_opposite_views_have_known_distances() -> None:
    z = F.normalize(torch.randn(6, 8), dim=-1)
    assert float(positive_distance(torch.stack([z, 3 * z]))) < 1e-12
    assert float(positive_distance(torch.stack([z, -z]))) == pytest.approx(4.0, rel=1e-5)
    assert float(positive_distance(torch.stack([z, -z]), norm=False)) == pytest.approx(4.0 / 8, rel=1e-5)


def test_low_precision_is_computed_in_float32_and_large_values_stay_finite() -> None:
    z = (torch.randn(2, 16, 8) * 1e4).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = positive_distance(z, norm=False)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and torch.isfinite(z.grad).all()


def test_one_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least two views"):
        positive_distance(torch.randn(1, 4, 3))
