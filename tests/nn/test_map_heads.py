"""Linear heads on maps: the sum of upsampled maps is the map of the concatenation, head by head."""

import torch
from torch.nn import functional as F

from imprint.nn.map_heads import LinearMapHeads


def test_equals_a_linear_map_of_upsampled_and_concatenated_maps():
    torch.manual_seed(0)
    heads = LinearMapHeads([5, 3], classes=4, heads=3).eval()
    for norm in heads.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    fine, coarse = torch.randn(2, 5, 8, 12), torch.randn(2, 3, 4, 6)
    normed = [n(x) for n, x in zip(heads.norms, (fine, coarse), strict=True)]
    joined = torch.cat([normed[0], F.interpolate(normed[1], (8, 12), mode="bilinear")], 1)
    out = heads([fine, coarse])
    assert out.shape == (3, 2, 4, 8, 12)
    for g in range(3):
        wanted = torch.einsum("bdhw,kd->bkhw", joined, heads.weights[g]) + heads.biases[g][:, None, None]
        torch.testing.assert_close(out[g], wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(heads.only(g)([fine, coarse])[0], out[g])


def test_heads_do_not_touch_each_other():
    heads = LinearMapHeads([3], classes=2, heads=2)
    maps = [torch.randn(2, 3, 4, 4)]
    first, second = heads.each(maps)
    torch.testing.assert_close(heads(maps), torch.cat([first, second]))
    first.square().sum().backward()
    assert heads.weights[0].grad is not None and heads.weights[1].grad is None
