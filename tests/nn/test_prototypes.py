import torch
import torch.nn.functional as F
from torch import nn

from imprint.nn.prototypes import Prototypes, UnitPrototypes


def test_prototypes_equal_pytorch_weight_norm():
    ours = Prototypes(4, 6, train_gain=True)
    theirs = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 6, bias=False))
    with torch.no_grad():
        theirs.weight = ours.direction.detach().clone()
        theirs.parametrizations.weight.original0.fill_(1.0)
    z = torch.randn(3, 4)
    torch.testing.assert_close(ours(z), theirs(z))
    ours(z).square().sum().backward()
    theirs(z).square().sum().backward()
    torch.testing.assert_close(ours.direction.grad, theirs.parametrizations.weight.original1.grad)
    torch.testing.assert_close(ours.gain.grad, theirs.parametrizations.weight.original0.grad)


def lengths(layer):
    return torch.linalg.vector_norm(layer.weight.detach(), dim=1)


def test_unit_prototypes_are_unit_from_the_start_and_again_after_a_step():
    layer = UnitPrototypes(8, 20)
    torch.testing.assert_close(lengths(layer), torch.ones(20))
    direction = torch.randn(20, 8)
    with torch.no_grad():
        layer.weight.copy_(direction * 5)
    place = layer.weight.data_ptr()
    layer.normalise_()
    assert layer.weight.data_ptr() == place, "in place: optimizers hold this tensor"
    torch.testing.assert_close(layer.weight.detach(), F.normalize(direction, dim=1))


def test_a_dead_prototype_stays_finite():
    layer = UnitPrototypes(4, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    layer.normalise_()
    assert torch.isfinite(layer.weight).all() and layer.weight[1].abs().max() == 0


def test_scores_are_inner_products_and_the_gradient_ignores_the_normalisation():
    layer = UnitPrototypes(8, 20)
    z = F.normalize(torch.randn(2, 5, 8), dim=-1).requires_grad_()
    scores = layer(z)
    torch.testing.assert_close(scores, z @ layer.weight.T)
    assert scores.shape == (2, 5, 20) and scores.abs().max() <= 1 + 1e-6
    scores.sum().backward()
    torch.testing.assert_close(layer.weight.grad, z.detach().sum((0, 1)).expand(20, 8))


def test_scores_keep_their_precision_under_autocast():
    layer = UnitPrototypes(8, 20)
    z = F.normalize(torch.randn(5, 8), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = layer(z)
        half = layer(z.bfloat16())
    assert torch.equal(scores, layer(z)) and half.dtype == torch.float32
    assert layer.double()(z.double()).dtype == torch.float64


def test_a_dropped_gradient_stops_decay_and_momentum_too():
    layer = UnitPrototypes(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9, weight_decay=0.5)
    for _ in range(2):
        layer(torch.ones(1, 4)).sum().backward()
        before = layer.weight.detach().clone()
        layer.drop_gradient()
        optimizer.step()
        assert torch.equal(layer.weight, before)
