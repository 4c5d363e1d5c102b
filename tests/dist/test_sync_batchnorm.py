from __future__ import annotations

import torch
from torch import nn

from imprint.dist.sync_batchnorm import SyncBatchNorm, synchronise


def test_alone_it_is_the_plain_norm_with_the_same_names():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    other.load_state_dict(plain.state_dict())
    synchronise(other, torch.device("cpu"))
    assert isinstance(other[1], SyncBatchNorm)
    assert isinstance(other[2][0], SyncBatchNorm)
    x = torch.randn(5, 3, 6, 6)
    for _ in range(2):
        assert torch.equal(plain(x), other(x))
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in plain.state_dict().items())
    plain.eval()
    other.eval()
    assert torch.equal(plain(x), other(x))
    synchronised = other[1]
    synchronise(other, torch.device("cpu"))
    assert other[1] is synchronised  # a second time changes nothing
