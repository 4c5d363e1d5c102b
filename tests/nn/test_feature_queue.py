import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.nn.feature_queue import FeatureQueue


def test_newest_rows_come_first_and_the_oldest_leave():
    queue = FeatureQueue(2, 5, 1)
    batches = [torch.arange(4.0).view(2, 2, 1) + 10 * i for i in range(1, 5)]
    for count, batch in enumerate(batches, 1):
        queue.push_(batch)
        assert queue.filled == 2 * count
        assert bool(queue.full) == (2 * count >= 5)
    expected = torch.cat(batches[::-1], dim=1)[:, :5]
    assert torch.equal(queue.features, expected)


def test_a_batch_may_fill_the_queue_but_not_exceed_it():
    queue = FeatureQueue(1, 3, 2)
    rows = torch.randn(1, 3, 2)
    queue.push_(rows)
    assert torch.equal(queue.features, rows) and queue.full
    with pytest.raises(ConfigError, match="queue of 3 features cannot take a batch of 4"):
        queue.push_(torch.randn(1, 4, 2))


def test_everything_is_in_the_state():
    queue, other = FeatureQueue(1, 4, 2), FeatureQueue(1, 4, 2)
    queue.push_(torch.randn(1, 3, 2))
    other.load_state_dict(queue.state_dict())
    rows = torch.randn(1, 2, 2)
    queue.push_(rows)
    other.push_(rows)
    assert torch.equal(queue.features, other.features) and torch.equal(queue.filled, other.filled)
    assert list(queue.parameters()) == []
