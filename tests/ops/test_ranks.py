from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from imprint.core.errors import ConfigError, DataError
from imprint.ops.ranks import (
    alignment,
    alpha_req,
    effective_rank,
    eigenspectrum,
    lidar,
    per_dimension_std,
    rankme,
    rankme_from,
    singular_values,
    uniformity,
)


def of_rank(rank: int, rows: int = 200, width: int = 12) -> Tensor:
    """Features with `rank` equal singular values and the rest zero."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64)).Q
    return left @ right.T


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_rankme_counts_equal_directions(rank: int) -> None:
    features = of_rank(rank)
    assert rankme(features, eps=1e-12).item() == pytest.approx(rank, rel=1e-6)
    assert rankme(7 * features, eps=1e-12).item() == pytest.approx(rank, rel=1e-6)
    assert rankme_from(singular_values(features)).item() == rankme(features).item()


def test_rankme_of_more_dimensions_than_rows_and_of_collapse() -> None:
    assert rankme(torch.eye(5, 40)).item() == pytest.approx(5, rel=1e-4)
    assert rankme(torch.ones(50, 8)).item() == pytest.approx(1, rel=1e-4)
    assert math.isfinite(rankme(torch.zeros(50, 8)).item())


def test_effective_rank_ignores_an_offset() -> None:
    features = of_rank(4)
    features = features - features.mean(0)
    assert effective_rank(features + 100.0).item() == pytest.approx(effective_rank(features).item(), rel=1e-6)
    assert effective_rank(features).item() <= 4 + 1e-9


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.7])
def test_alpha_req_finds_the_exponent_of_a_power_law(exponent: float) -> None:
    width = 64
    scales = torch.arange(1, width + 1, dtype=torch.float64) ** (-exponent / 2)
    basis = torch.randn(400, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left = torch.linalg.qr(basis - basis.mean(0)).Q  # centred columns stay centred
    law = alpha_req(left * scales, 3, 50)
    assert law.alpha.item() == pytest.approx(exponent, rel=1e-9)
    assert law.alpha_ols.item() == pytest.approx(exponent, rel=1e-9)
    assert law.r2.item() == pytest.approx(1.0, rel=1e-9)
    assert law.eigenspectrum_D.sum().item() == pytest.approx(1.0)


def test_alpha_req_against_numpys_polyfit() -> None:
    features = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 0.1, 40)
    law = alpha_req(features, 2, 30)
    spectrum = eigenspectrum(features).numpy()[2:30]
    logs = np.log(np.arange(3, 31))
    assert law.alpha_ols.item() == pytest.approx(-np.polyfit(logs, np.log(spectrum), 1)[0], rel=1e-9)
    weighted = -np.polyfit(logs, np.log(spectrum), 1, w=np.sqrt(1 / np.arange(3, 31)))[0]
    assert law.alpha.item() == pytest.approx(weighted, rel=1e-9)
    with pytest.raises(DataError, match="eigenvalues"):
        alpha_req(features, 39, 100)


def test_lidar_counts_the_directions_that_tell_samples_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, 5, 10, generator=generator, dtype=torch.float64) * 0.1
    classes = torch.zeros(2000, 1, 10, dtype=torch.float64)
    classes[..., :3] = 10 * torch.randn(2000, 1, 3, generator=generator, dtype=torch.float64)
    assert lidar(classes + noise).value.item() == pytest.approx(3, rel=0.01)
    turn = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64)).Q
    assert lidar((classes + noise) @ turn).value.item() == pytest.approx(lidar(classes + noise).value.item(), rel=1e-9)
    result = lidar(classes + noise, variant="code")
    assert (result.eigenvalues_D.diff() <= 0).all()
    with pytest.raises(DataError, match="Q >= 2"):
        lidar(noise[:, :1])
    with pytest.raises(ConfigError, match="paper"):
        lidar(noise, variant="papr")  # type: ignore[arg-type]


def test_lidar_with_fewer_samples_than_dimensions() -> None:
    features = torch.randn(6, 3, 20, generator=torch.Generator().manual_seed(0))
    value = lidar(features).value.item()
    assert 1 <= value <= 5 + 1e-3


def test_per_dimension_std() -> None:
    sphere = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(per_dimension_std(sphere) * 4, torch.ones(16), atol=0.03, rtol=0)
    assert (per_dimension_std(torch.ones(10, 4)) < 1e-6).all()
    torch.testing.assert_close(per_dimension_std(sphere, normalise=False), sphere.std(0, correction=0))


def test_alignment_and_uniformity_are_their_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.nn.functional.normalize(torch.randn(2500, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    pairs = torch.pdist(x.double()).square()
    assert uniformity(3 * x).item() == pytest.approx(torch.log(torch.exp(-2 * pairs).mean()).item(), abs=1e-5)
    assert uniformity(torch.ones(7, 3)).item() == pytest.approx(0.0, abs=1e-5)
    assert alignment(x, 2 * x).item() == pytest.approx(0.0, abs=1e-6)
    assert alignment(x, -x).item() == pytest.approx(4.0, rel=1e-5)
    assert alignment(x, -x, power=1).item() == pytest.approx(2.0, rel=1e-5)


def test_shapes_are_checked() -> None:
    with pytest.raises(DataError, match="at least 2 rows"):
        per_dimension_std(torch.zeros(1, 4))
    with pytest.raises(DataError):
        rankme(torch.zeros(3, 4, 5))
