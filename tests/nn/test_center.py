import torch

from imprint.nn.center import RunningMean


def test_center_is_a_saved_buffer_that_follows_the_mean():
    center = RunningMean(3, momentum=0.9)
    rows = torch.randn(2, 5, 3)
    center.update_(rows, lambda x: x)
    torch.testing.assert_close(center.value, 0.1 * rows.flatten(0, 1).mean(0))
    assert "value" in center.state_dict()


def test_center_averages_over_processes():
    center = RunningMean(1, momentum=0.0)
    center.update_(torch.ones(1, 2, 1), lambda mean: (mean + 3.0) / 2)
    assert center.value.item() == 2.0
