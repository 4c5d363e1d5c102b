import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.nn.grey_stem import even_channels_
from imprint.nn.hypercolumn import Hypercolumn, resized


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (3, 2), (5, 5), (7, 20)])
def test_resizing_equals_torch(size):
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    expected = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(resized(x, size), expected, rtol=1e-5, atol=1e-5)


def test_maps_of_any_scale_meet_on_one_grid():
    head = Hypercolumn([4, 6, 8], 5, layers=1)
    maps = [torch.randn(2, 4, 16, 16), torch.randn(2, 6, 8, 8), torch.randn(2, 8, 3, 3, requires_grad=True)]
    out = head(maps, (8, 8))
    assert out.shape == (2, 5, 8, 8)
    out.sum().backward()
    assert maps[2].grad.abs().sum() > 0 and all(p.grad is not None for p in head.parameters())


def test_equal_to_the_concatenated_maps():
    head = Hypercolumn([4, 6], 5, layers=0).double().eval()
    fine, coarse = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 6, 4, 4).double()
    whole = torch.cat([fine, resized(coarse, (8, 8))], 1)
    weight = torch.cat([lateral.weight for lateral in head.laterals], 1)
    torch.testing.assert_close(head([fine, coarse], (8, 8)), head.body(F.conv2d(whole, weight)))


def test_no_maps_are_refused():
    with pytest.raises(ConfigError, match="at least one map"):
        Hypercolumn([], 8)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_an_even_stem_sees_grey_images_as_before_and_colour_images_as_their_mean(name):
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=64 if "swin" not in name else 224).eval()
    grey = torch.randn(1, 1, encoder.image_size, encoder.image_size).expand(-1, 3, -1, -1).contiguous()
    colour = torch.randn_like(grey)
    with torch.no_grad():
        before = encoder(grey).pooled_BD
        assert even_channels_(encoder)
        torch.testing.assert_close(encoder(grey).pooled_BD, before, rtol=1e-3, atol=1e-4)
        mean = colour.mean(1, keepdim=True).expand_as(colour).contiguous()
        torch.testing.assert_close(encoder(colour).pooled_BD, encoder(mean).pooled_BD, rtol=1e-3, atol=1e-4)
