import math

import pytest
import torch

from imprint.nn.predictor import Predictor
from imprint.ops.positions import sincos_2d


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return Predictor(encoder_width=12, width=16, depth=2, heads=4, grid=(3, 4), outputs=5)


def places(*shape):
    return torch.rand(*shape[:-1], 12).argsort(-1)[..., : shape[-1]]


def test_all_sets_at_once_are_each_by_itself(predictor):
    seen, at, asked = torch.randn(2, 4, 12), places(2, 4), places(3, 2, 5)
    together = predictor(seen, at, asked)
    assert together.shape == (6, 5, 5)
    torch.testing.assert_close(together, torch.cat([predictor(seen, at, one[None]) for one in asked]))


def test_predictions_follow_the_order_asked_and_not_that_of_the_seen(predictor):
    seen, at, asked = torch.randn(2, 4, 12), places(2, 4), places(1, 2, 5)
    found = predictor(seen, at, asked)
    torch.testing.assert_close(predictor(seen.flip(1), at.flip(1), asked), found)
    torch.testing.assert_close(predictor(seen, at, asked.flip(2)), found.flip(1))
    assert not torch.allclose(predictor(seen, at.flip(1), asked), found), "positions of the seen count"


def test_prefix_tokens_come_first(predictor):
    seen, at, asked = torch.randn(2, 4, 12), places(2, 4), places(1, 2, 5)
    with_prefix = predictor.tokens(seen, at, asked, torch.randn(2, 1, 12))
    assert with_prefix.shape == (2, 1 + 4 + 5, 16)
    assert not torch.allclose(with_prefix[:, 1:], predictor.tokens(seen, at, asked))


def test_starts_as_the_public_code_does():
    predictor = Predictor(encoder_width=64, width=128, depth=3, heads=4, grid=(4, 4), outputs=64)
    for number, block in enumerate(predictor.blocks, start=1):
        for last in (block.proj, block.mlp[-1]):
            assert float(last.weight.detach().std()) == pytest.approx(0.02 / math.sqrt(2 * number), rel=0.05)
        assert float(block.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert block.qkv.bias.abs().max() == 0
    torch.testing.assert_close(predictor.positions_ND, sincos_2d(128, (4, 4)).float())
    assert "positions_ND" not in predictor.state_dict()
