import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.nn.frame_decoder import FrameDecoder, shrunk

MAPS = ((6, 2), (8, 4), (10, 8), (12, 16))


def maps_of(shapes, rows, side):
    return [torch.randn(rows, width, side // stride, side // stride) for width, stride in shapes]


def test_every_map_enters_and_every_scale_predicts():
    decoder = FrameDecoder(MAPS, 32, 3, past=2, scales=3, width=4, hidden=(5,))
    assert decoder.chosen == [[1, 2, 3], [0], [0]]
    maps = [m.requires_grad_() for m in maps_of(MAPS, 6, 32)]
    found = decoder(maps)
    assert [tuple(f.shape) for f in found] == [(3, 3, 8, 8), (3, 3, 16, 16), (3, 3, 32, 32)]
    found[-1].sum().backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in maps), "the finest frame depends on every map"
    assert [n for n, p in decoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("maps", "scales"), [(((16, 8),), 4), (((16, 1), (8, 2)), 3), (((16, 16),), 1)])
def test_one_map_or_finer_maps_than_scales_do(maps, scales):
    decoder = FrameDecoder(maps, 32, 3, past=1, scales=scales, width=2, hidden=(4,))
    found = decoder(maps_of(maps, 2, 32))
    assert found[-1].shape == (2, 3, 32, 32) and len(found) == scales


def test_frames_of_a_clip_stay_together_and_in_order():
    torch.manual_seed(0)
    decoder = FrameDecoder(MAPS, 32, 3, past=3, scales=2, width=4, hidden=(5,))
    maps = maps_of(MAPS, 6, 32)
    whole = decoder(maps)[-1]
    torch.testing.assert_close(decoder([m[3:] for m in maps])[-1], whole[1:])
    turned = decoder([m.unflatten(0, (2, 3)).flip(1).flatten(0, 1) for m in maps])[-1]
    assert (turned - whole).abs().max() > 1e-3


def test_a_change_starts_as_none_and_a_guess_is_added_to():
    torch.manual_seed(0)
    last = torch.randn(3, 3, 32, 32)
    decoder = FrameDecoder(MAPS, 32, 3, past=2, scales=3, width=4, hidden=(5,), zero=True)
    for frame, side in zip(decoder(maps_of(MAPS, 6, 32), last), (8, 16, 32), strict=True):
        torch.testing.assert_close(frame, shrunk(last, side))
    torch.nn.init.ones_(decoder.nets[0][-1].bias)
    found = decoder(maps_of(MAPS, 6, 32), last)
    torch.testing.assert_close(found[-1], last + 1)  # what the coarsest network adds is handed on


def test_shrinking_takes_means():
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(shrunk(x, 4)[1, 2, 1, 3], x[1, 2, 2:4, 6:8].mean())
    assert shrunk(x, 8) is x


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="scales"):
        FrameDecoder(MAPS, 36, 3, past=2, scales=4)
    with pytest.raises(ConfigError, match="--image-size 48"):
        FrameDecoder(MAPS, 40, 3, past=2, scales=2)
    with pytest.raises(ConfigError, match="power of two"):
        FrameDecoder(((4, 6),), 48, 3, past=2, scales=3)
