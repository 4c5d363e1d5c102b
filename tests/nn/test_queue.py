"""The queue against a list that grows and is cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.nn.queue import KeyQueue


def test_keeps_the_newest_rows_and_counts_them() -> None:
    torch.manual_seed(0)
    queue, pushed = KeyQueue(3, 8), []
    for step in range(1, 6):
        rows = torch.randn(4, 3) * 5
        pushed.append(F.normalize(rows, dim=1))
        queue.push_(rows)
        assert queue.filled.item() == min(8, 4 * step)
        assert queue.pointer.item() == 4 * step % 8
        kept = queue.keys[: int(queue.filled)]
        expected = torch.cat(pushed[-2:])
        assert {tuple(r.tolist()) for r in kept} == {tuple(r.tolist()) for r in expected}
        newest = (queue.pointer.item() - 4) % 8
        assert torch.equal(queue.keys[newest : newest + 4], pushed[-1])


def test_rows_may_be_kept_as_they_are() -> None:
    queue = KeyQueue(2, 4, normalise=False)
    queue.push_(torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True))
    assert queue.keys[:2].tolist() == [[3.0, 4.0], [0.0, 0.0]] and not queue.keys.requires_grad
    queue.push_(torch.ones(2, 2, dtype=torch.bfloat16))
    assert queue.keys.dtype == torch.float32 and queue.filled.item() == 4


def test_random_start_counts_and_is_of_unit_length() -> None:
    queue = KeyQueue(5, 6, random_start=True)
    assert queue.filled.item() == 6 and queue.pointer.item() == 0
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(6))
    assert KeyQueue(5, 6).filled.item() == 0


def test_a_state_dict_goes_on_bit_equal() -> None:
    torch.manual_seed(0)
    one, two = KeyQueue(3, 6), KeyQueue(3, 6)
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    one.push_(first)
    two.load_state_dict(one.state_dict())
    for queue in (one, two):
        queue.push_(second)
    for name, value in one.state_dict().items():
        assert torch.equal(two.state_dict()[name], value), name


def test_sizes_that_do_not_fit_are_refused_with_ones_that_do() -> None:
    with pytest.raises(ConfigError, match="choose a queue of 96 or 144 keys"):
        KeyQueue(3, 100).push_(torch.zeros(48, 3))
    with pytest.raises(ConfigError, match="choose a queue of 16 keys"):
        KeyQueue(3, 8).push_(torch.zeros(16, 3))
    with pytest.raises(ConfigError, match="width 3 cannot take"):
        KeyQueue(3, 8).push_(torch.zeros(4, 5))
    with pytest.raises(ConfigError, match="at least 1"):
        KeyQueue(3, 0)
    queue = KeyQueue(3, 8)
    with pytest.raises(ConfigError, match="cannot take"):
        queue.load(torch.zeros(8, 3), pointer=8)


def test_load_puts_rows_in_as_they_are() -> None:
    queue = KeyQueue(2, 4)
    rows = torch.arange(8.0).view(4, 2)
    queue.load(rows, pointer=2, filled=3)
    assert torch.equal(queue.keys, rows) and (queue.pointer.item(), queue.filled.item()) == (2, 3)
    queue.push_(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
    assert queue.keys[2:].tolist() == [[0.0, 1.0], [1.0, 0.0]] and queue.pointer.item() == 0
