from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.ops.masking import by_row, keep_from_mask, kept_count, order_from_mask, random_masking, take_tokens


@pytest.mark.parametrize(("patches", "ratio"), [(16, 0.75), (49, 0.6), (196, 0.75), (10, 0.0), (7, 0.5)])
def test_random_masking_is_a_permutation_with_the_right_share(patches: int, ratio: float) -> None:
    noise = torch.rand(5, patches)
    keep, mask, restore = random_masking(noise, ratio)
    kept = int(patches * (1 - ratio))
    assert keep.shape == (5, kept) and (mask.sum(1) == patches - kept).all()
    assert torch.equal(restore.sort(1).values, torch.arange(patches).expand(5, -1))
    assert not torch.gather(mask, 1, keep).any()
    if kept < patches:
        assert (noise[~mask].view(5, -1).amax(1) <= noise[mask].view(5, -1).amin(1)).all()
    # [kept, masked] put back in order is the grid.
    tokens = torch.arange(patches).expand(5, -1)
    shuffled = torch.empty_like(tokens)
    shuffled.scatter_(1, restore, tokens)
    assert torch.equal(shuffled[:, :kept], keep)
    assert torch.equal(torch.gather(shuffled, 1, restore), tokens)


def test_order_from_mask_keeps_the_grid_order() -> None:
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    keep, restore = order_from_mask(mask, 2)
    assert keep.tolist() == [[1, 3], [0, 1]]
    assert torch.equal(keep, keep_from_mask(mask, 2))
    tokens = torch.randn(2, 4, 3)
    order = torch.cat([take_tokens(tokens, keep), tokens[mask].view(2, 2, 3)], dim=1)
    assert torch.equal(take_tokens(order, restore), tokens)


def test_take_tokens_passes_gradients_to_the_kept_only() -> None:
    tokens = torch.randn(2, 5, 3, requires_grad=True)
    keep = torch.tensor([[4, 0], [1, 2]])
    take_tokens(tokens, keep).sum().backward()
    expected = torch.zeros(2, 5, 3).index_put_((torch.tensor([0, 0, 1, 1]), keep.flatten()), torch.tensor(1.0))
    assert torch.equal(tokens.grad, expected)


@pytest.mark.parametrize("ratio", [1.0, 0.99, -0.1])
def test_a_ratio_that_keeps_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="mask ratio"):
        kept_count(16, ratio)


def test_places_become_columns_by_row() -> None:
    mask_VBN = torch.rand(3, 4, 20).argsort(-1) < 6
    columns = by_row(mask_VBN.flatten().nonzero().squeeze(1), mask_VBN)
    assert columns.shape == (3, 4, 6) and (columns.diff(dim=-1) > 0).all()
    back = torch.zeros_like(mask_VBN).scatter(-1, columns, torch.ones_like(columns, dtype=torch.bool))
    assert torch.equal(back, mask_VBN)
    with pytest.raises(ConfigError, match="equal number"):
        by_row(torch.arange(7), mask_VBN)
