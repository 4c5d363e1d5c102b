"""Pyramids: levels halve, coarse levels reach fine ones, one map becomes four, and what does not fit is refused."""

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.nn.feature_pyramid import ChannelNorm, FeaturePyramid, SimpleFeaturePyramid


def test_fpn_gives_every_level_one_width_and_one_more():
    maps = [torch.randn(2, d, s, s + s // 2) for d, s in ((8, 16), (12, 8), (20, 4))]
    levels = FeaturePyramid([8, 12, 20], 16)(maps)
    assert list(levels) == ["0", "1", "2", "pool"]
    assert [tuple(x.shape) for x in levels.values()] == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]
    torch.testing.assert_close(levels["pool"], levels["2"][:, :, ::2, ::2])


def test_fpn_runs_top_down():
    torch.manual_seed(0)
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4, requires_grad=True)
    pyramid = FeaturePyramid([4, 6], 8)
    pyramid([fine, coarse])["0"].square().sum().backward()
    assert coarse.grad is not None and coarse.grad.abs().sum() > 0
    fine.requires_grad_()
    assert torch.autograd.grad(pyramid([fine, coarse])["1"].square().sum(), fine, allow_unused=True) == (None,)


def test_fpn_levels_out_features_of_any_scale():
    torch.manual_seed(0)
    pyramid = FeaturePyramid([4, 6], 32)
    maps = [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    small, large = pyramid(maps), pyramid([1000 * x for x in maps])
    for name in small:
        torch.testing.assert_close(small[name], large[name], rtol=2e-2, atol=2e-2)


def test_simple_pyramid_has_four_resolutions_of_one_map():
    levels = SimpleFeaturePyramid(24, 16)([torch.randn(2, 24, 6, 4)])
    assert [tuple(x.shape[2:]) for x in levels.values()] == [(24, 16), (12, 8), (6, 4), (3, 2), (2, 1)]
    assert {x.shape[1] for x in levels.values()} == {16}


def test_channel_norm_is_layer_norm_of_every_cell():
    x = torch.randn(2, 5, 3, 4) * 3 + 1
    got = ChannelNorm(5)(x)
    want = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(got, want)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="at least one map"):
        FeaturePyramid([])
    with pytest.raises(ConfigError, match="stands on 2 maps and got 1"):
        FeaturePyramid([4, 4], 8)([torch.zeros(1, 4, 2, 2)])
    with pytest.raises(ConfigError, match="one map and got 2"):
        SimpleFeaturePyramid(4, 8)([torch.zeros(1, 4, 2, 2)] * 2)
    with pytest.raises(ConfigError, match="must be even; got 3 x 2"):
        SimpleFeaturePyramid(4, 8)([torch.zeros(1, 4, 3, 2)])
