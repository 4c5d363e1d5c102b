import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.barlow_twins import BarlowTwins, BarlowTwinsConfig
from imprint.recipes.book import recipe
from imprint.train.optim import build_optimizer, set_rates

NOW = Progress(0, 10, 5)


def method_of(**changes):
    torch.manual_seed(0)
    config = recipe("barlow_twins/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return BarlowTwins(dataclasses.replace(config.method, **changes), encoder)


def batch_of(views):
    return Batch(views={"global": views}, index_B=torch.arange(views.shape[1]))


def test_defaults_are_the_papers():
    cfg = BarlowTwinsConfig()
    assert (cfg.lambd, cfg.projector) == (0.0051, (8192, 8192, 8192))
    (view,) = BarlowTwins.views(cfg, 224)
    assert view.count == 2 and view.crop.scale == (0.08, 1.0)
    first, second = view.look_of(0), view.look_of(1)
    assert (first.blur, first.solarise, second.blur, second.solarise) == (1.0, 0.0, 0.1, 0.2)


def test_projector_is_three_layers_without_bias_and_bare_at_the_end():
    head = method_of().branch.head
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert all(layer.bias is None for layer in head if isinstance(layer, torch.nn.Linear))


def test_equal_views_are_easier_than_unrelated_ones():
    method = method_of()
    same = method(batch_of(torch.randn(1, 16, 3, 32, 32).expand(2, -1, -1, -1, -1)), NOW)
    other = method(batch_of(torch.randn(2, 16, 3, 32, 32)), NOW)
    assert same.metrics["barlow_twins/on_diagonal"] < 1e-3 < 1 < other.metrics["barlow_twins/on_diagonal"]
    total = other.metrics["barlow_twins/on_diagonal"] + 0.0051 * other.metrics["barlow_twins/off_diagonal"]
    torch.testing.assert_close(other.loss.detach(), total)


def test_views_have_batch_statistics_of_their_own():
    """A shift of brightness of one whole view is invisible: its batch norms take it out."""
    method = method_of()
    views = torch.randn(2, 16, 3, 32, 32)
    plain = method(batch_of(views), NOW).loss
    scaled = method(batch_of(torch.stack([views[0], views[1] * 5])), NOW).loss
    torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-3)


def test_every_parameter_learns_and_biases_have_their_own_rate():
    method = method_of()
    method(batch_of(torch.randn(2, 16, 3, 32, 32)), NOW).loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    plan = recipe("barlow_twins/paper").optim
    optimizer = build_optimizer(method.param_groups(), plan, torch.device("cpu"))
    set_rates(optimizer, plan.lr.peak(256), plan.lr.peak(256), 1e-6)
    rates = {g["name"]: (g["lr"], g["weight_decay"], g["adapt"]) for g in optimizer.param_groups}
    assert rates["decay"] == pytest.approx((0.2, 1e-6, True))
    assert rates["no_decay"] == pytest.approx((0.0048, 0.0, False))


def test_lambda_zero_is_a_danger():
    assert BarlowTwins.dangers(BarlowTwinsConfig()) == ()
    (text,) = BarlowTwins.dangers(BarlowTwinsConfig(lambd=0.0))
    assert "lambd" in text and "--method.lambd" in text
