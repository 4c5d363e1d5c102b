import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.nn.bridges import ChannelwiseBridge, DenseBridge
from imprint.nn.discriminators import CodeDiscriminator, ImageDiscriminator
from imprint.nn.up_convolutions import CodeDecoder, UpConvolutions, doublings, start_side, widths


def test_plans_are_those_of_the_public_code():
    assert widths(4, 64) == [64, 128, 256, 512]  # 64 pixels
    assert widths(5, 64) == [64, 64, 128, 256, 512]  # 128 pixels
    assert [start_side(s) for s in (16, 32, 64, 96, 112, 128, 224)] == [4, 4, 4, 3, 7, 4, 7]
    assert doublings(7, 112) == 4 and doublings(8, 8) is None and doublings(3, 16) is None


@pytest.mark.parametrize(("small", "large"), [(4, 64), (2, 16), (7, 112), (3, 24), (8, 16)])
def test_decoders_reach_their_side(small, large):
    net = UpConvolutions(small, large, 3, 8)
    assert net(torch.randn(2, net.inputs, small, small)).shape == (2, 3, large, large)
    assert all(m.bias is None for m in net.modules() if isinstance(m, torch.nn.ConvTranspose2d))


@pytest.mark.parametrize("side", [16, 32, 96])
def test_discriminators_mirror_decoders(side):
    judge, painter = ImageDiscriminator(3, side, 8), CodeDecoder(5, side, 3, 8)
    picture = painter(torch.randn(4, 5))
    assert picture.shape == (4, 3, side, side) and judge(picture).shape == (4,)
    down = [m.out_channels for m in judge.modules() if isinstance(m, torch.nn.Conv2d)][:-1]
    up = [m.in_channels for m in painter.modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert down == up[::-1]
    norms = [m for m in judge.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == len(down) - 1  # none after the first


@pytest.mark.parametrize("side", [4, 37, 34])
def test_sides_that_do_not_halve_are_refused(side):
    with pytest.raises(ConfigError, match="multiple of 16"):
        ImageDiscriminator(3, side, 8)


def test_the_channelwise_bridge_against_the_naive_loop():
    torch.manual_seed(0)
    bridge = ChannelwiseBridge(6, 4, 3, 5).eval()
    x = torch.randn(2, 4, 6)
    y = torch.zeros(2, 6, 9)
    for b in range(2):
        for d in range(6):
            for m in range(9):
                y[b, d, m] = sum(bridge.weight_DNM[d, n, m] * x[b, n, d] for n in range(4))
    expected = bridge.norm(bridge.mix(y.unflatten(2, (3, 3)))).relu()
    torch.testing.assert_close(bridge(x), expected, atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in (bridge.weight_DNM,)) == 6 * 4 * 9


def test_every_place_of_the_hole_sees_all_of_the_context():
    torch.manual_seed(1)
    for bridge in (ChannelwiseBridge(6, 4, 3, 5), DenseBridge(6, 4, 3, 5, 7)):
        x = torch.randn(3, 4, 6, requires_grad=True)
        out = bridge.eval()(x)
        assert out.shape == (3, 5, 3, 3)
        (grad,) = torch.autograd.grad(out[0, :, 2, 2].sum(), x)
        assert (grad[0].abs().sum(1) > 0).all() and not grad[1:].any()


def test_codes_of_any_spread_enter_alike():
    torch.manual_seed(0)
    one = CodeDiscriminator(3, 8)
    five = CodeDiscriminator(3, 8, scale=5.0)
    five.load_state_dict(one.state_dict())
    x = torch.randn(4, 3)
    torch.testing.assert_close(five(5 * x), one(x))
