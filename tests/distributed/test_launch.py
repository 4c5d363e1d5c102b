"""Local processes: what they exchange, and what the parent learns when one of them fails."""

from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError, HealthError, ImprintError
from imprint.dist.launch import launch


def test_collectives(work, in_two):
    first, second = in_two(work.collectives)
    assert (first["world"], second["world"]) == ((0, 2), (1, 2))
    torch.manual_seed(0)
    every = torch.randn(work.ROWS, 3)
    grads = torch.arange(every.numel()).view_as(every) * 3.0  # weights 1 and 2 of the two processes
    for rank, found in enumerate((first, second)):
        rows = slice(rank * 4, rank * 4 + 4)
        assert torch.equal(found["gathered"], every)
        assert found["offset"] == rank * 4
        torch.testing.assert_close(found["grad"], grads[rows])
        assert found["sum"] == 3.0
        assert found["mean"] == 1.5
        assert found["sum_grad"] == 5.0  # 2 + 3
        assert found["any"] == (True, False)
        assert found["object"] == {"from": 0}
        assert found["objects"] == [0, 10]


def test_an_error_of_ours_arrives_as_itself(work, in_two):
    with pytest.raises(HealthError, match=r"^numbers ran away in rank 1\.$") as caught:
        in_two(work.fails)
    assert caught.value.exit_code == 3


def test_any_other_error_arrives_with_its_traceback(work, in_two):
    with pytest.raises(ImprintError, match="process 0 of 2 failed") as caught:
        in_two(work.breaks)
    assert "KeyError: 'a bug'" in str(caught.value)


def test_a_killed_process_is_named(work, in_two):
    with pytest.raises(ImprintError, match="process 1 of 2 was killed by SIGKILL"):
        in_two(work.dies)


def test_no_process_is_refused(work):
    with pytest.raises(ConfigError, match="at least 1"):
        launch(work.collectives, ("",), 0)
