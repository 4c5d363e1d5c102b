import pytest
import torch

from imprint.ops.spread import agreement


def test_agreement_is_one_for_isotropic_embeddings_and_zero_for_collapsed_ones():
    torch.manual_seed(0)
    z = torch.randn(4000, 64)
    assert agreement(z, z)["embedding/std"].item() == pytest.approx(1.0, abs=0.02)
    assert agreement(torch.ones(50, 64), torch.ones(50, 64))["embedding/std"].item() < 1e-3


@pytest.mark.parametrize("rows", [40, 4000])
def test_correlation_equals_the_naive_one(rows):
    torch.manual_seed(0)
    z = torch.randn(rows, 64) @ torch.randn(64, 64)
    c = torch.corrcoef(z.T)
    naive = c[~torch.eye(64, dtype=torch.bool)].square().mean().sqrt()
    assert agreement(z, z)["embedding/correlation"].item() == pytest.approx(naive.item(), rel=1e-4)


def test_copies_of_one_dimension_are_redundant_and_independent_ones_are_not():
    torch.manual_seed(0)
    one = torch.randn(500, 1)
    assert agreement(one.expand(-1, 8), one.expand(-1, 8))["embedding/correlation"].item() == pytest.approx(1, abs=1e-4)
    free = torch.randn(5000, 8)
    assert agreement(free, free)["embedding/correlation"].item() < 0.05
    dead = torch.ones(50, 8)
    assert agreement(dead, dead)["embedding/correlation"].item() == 0.0
