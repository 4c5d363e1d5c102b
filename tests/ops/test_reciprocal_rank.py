import pytest
import torch

from imprint.core.errors import DataError
from imprint.ops.reciprocal_rank import condition_ranks


def test_ranks_by_hand():
    conditions = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    sampled = torch.tensor([[0.1, 0.0], [0.1, 0.0], [0.1, 0.0], [3.5, 0.0]])
    assert condition_ranks(sampled, conditions, torch.tensor([0, 1, 2, 1])).tolist() == [1, 2, 3, 2]


def test_equal_distances_are_no_hit():
    same = torch.ones(4, 3)
    assert condition_ranks(same, same, torch.arange(4)).tolist() == [4] * 4


def test_one_condition_ranks_nothing():
    with pytest.raises(DataError, match="two conditions"):
        condition_ranks(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
