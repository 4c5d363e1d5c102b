"""UPerNet: scales of plain ViTs and pyramids, gradients everywhere, clear refusals."""

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.nn.upernet import FourScales, PyramidPooling, UPerNet


@pytest.mark.parametrize(
    ("patch", "sides"),
    [(16, (16, 8, 4, 2)), (8, (8, 4, 2, 1)), (4, (4, 2, 1, 1)), (14, (16, 8, 4, 2)), (2, (4, 2, 1, 1))],
)
def test_scales_of_a_plain_vit(patch, sides):
    maps = [torch.randn(1, 6, 4, 4) for _ in range(4)]
    assert tuple(x.shape[2] for x in FourScales(6, patch)(maps)) == sides


def test_pooling_of_a_constant_map_is_constant():
    pooling = PyramidPooling(3, 4).eval()
    out = pooling(torch.ones(2, 3, 12, 18))
    inner = out[:, :, 1:-1, 1:-1]  # the 3 x 3 convolution pads with zeros at the border
    assert out.shape == (2, 4, 12, 18)
    torch.testing.assert_close(inner, inner[:, :, :1, :1].expand_as(inner), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("patch", [0, 16])
def test_logits_on_the_finest_grid_and_gradients_everywhere(patch):
    torch.manual_seed(0)
    maps = [torch.randn(2, 8, 4, 6) for _ in range(4)] if patch else [
        torch.randn(2, width, 16 >> i, 24 >> i) for i, width in enumerate((4, 6, 8, 10))
    ]  # fmt: skip
    net = UPerNet([x.shape[1] for x in maps], classes=5, channels=16, patch=patch)
    logits, auxiliary = net(maps)
    assert logits.shape == (2, 5, 16, 24) and auxiliary.shape == (2, 5, 4, 6)
    (logits.square().sum() + auxiliary.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="several scales"):
        UPerNet([3], classes=2)
    with pytest.raises(ConfigError, match="four --layers"):
        UPerNet([8, 8], classes=2, patch=16)
