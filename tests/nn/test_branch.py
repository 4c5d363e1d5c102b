import torch
from torch import nn

from imprint.backbones.encoder import Encoder, Features
from imprint.nn.branch import Branch


class Mean(Encoder):
    embed_dim = 3

    def encode(self, images_BCHW, mask_BN=None, keep_BM=None):
        pooled = images_BCHW.mean((2, 3))
        return Features(pooled, None, None, images_BCHW.flatten(2).transpose(1, 2), (1, 1))


def test_views_of_all_sizes_come_out_in_order():
    branch = Branch(Mean(), nn.Identity())
    large, small = torch.randn(2, 4, 3, 8, 8), torch.randn(3, 4, 3, 4, 4)
    out = branch(large, small)
    assert out.shape == (5, 4, 3)
    torch.testing.assert_close(out[1], large[1].mean((2, 3)))
    torch.testing.assert_close(out[4], small[2].mean((2, 3)))
