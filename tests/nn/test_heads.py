import torch
import torch.nn.functional as F
from torch import nn

from imprint.nn.heads import ProjectionMLP, PrototypeHead


def test_simclr_head_is_linear_bn_relu_linear_bn_without_shift():
    head = ProjectionMLP((8, 16, 4), last_norm="scale")
    assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert head[0].bias is None and head[3].bias is None
    assert head[4].weight.requires_grad and not head[4].bias.requires_grad
    out = head(torch.randn(32, 8))
    assert out.shape == (32, 4)
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_head_without_norms_has_biases():
    head = ProjectionMLP((8, 16, 4), norm=False)
    assert [type(m) for m in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert head[0].bias is not None and head[2].bias is not None


def test_plain_last_norm_has_no_parameters():
    assert list(ProjectionMLP((8, 4), last_norm="plain")[-1].parameters()) == []


def test_prototype_logits_are_cosines_while_the_gain_is_one():
    head = PrototypeHead(8, 16, 4, 10)
    x = torch.randn(5, 8)
    logits = head(x)
    expected = F.normalize(head.mlp(x), dim=-1) @ F.normalize(head.prototypes.direction, dim=-1).T
    torch.testing.assert_close(logits, expected)
    assert logits.abs().max() <= 1 + 1e-6
    assert "prototypes.gain" not in {n for n, p in head.named_parameters() if p.requires_grad}
