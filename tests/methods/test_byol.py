import dataclasses

import pytest
import torch
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.core.progress import Epochs, Progress
from imprint.core.schedules import constant
from imprint.data.batch import Batch
from imprint.methods.byol import BYOL, BYOLConfig
from imprint.recipes import byol as recipes
from imprint.recipes.book import recipe
from imprint.train.optim import build_optimizer, set_rates

NOW = Progress(0, 10, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("byol/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return BYOL(dataclasses.replace(config.method, **changes), encoder)


@pytest.fixture
def method():
    return make()


def batch_of(count=6):
    torch.manual_seed(1)
    return Batch(views={"global": torch.randn(2, count, 3, 32, 32)}, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = BYOLConfig()
    assert (cfg.hidden, cfg.projection, cfg.predictor) == (4096, 256, True)
    run = Progress(0, 1000, 10)
    assert cfg.momentum(run) == 0.996 and cfg.momentum(run.at(1000)) == 1.0
    (view,) = BYOL.views(cfg, 224)
    assert (view.count, view.crop.size, view.crop.scale, view.crop.interpolation) == (2, 224, (0.08, 1.0), "bicubic")
    first, second = (view.look_of(i) for i in (0, 1))
    assert [(k.blur, k.solarise) for k in (first, second)] == [(1.0, 0.0), (0.1, 0.2)]
    assert (first.brightness, first.contrast, first.saturation, first.hue) == (0.4, 0.4, 0.2, 0.1)


def test_the_papers_recipes():
    for make_run, epochs, lr, decay, momentum in (
        (recipes.paper, 1000, 0.2, 1.5e-6, 0.996),
        (recipes.paper_300, 300, 0.3, 1e-6, 0.99),
        (recipes.paper_100, 100, 0.45, 1e-6, 0.99),
    ):
        run = make_run()
        assert (run.length, run.optim.lr.base, run.optim.lr.warmup) == (Epochs(epochs), lr, Epochs(10))
        assert run.optim.weight_decay(NOW) == decay and run.method.momentum.start == momentum
        assert (run.optim.name, run.batch_size) == ("lars", 4096)


def test_heads_have_batch_norm_after_the_hidden_layer_only(method):
    for head in (method.online.head, method.predictor):
        assert [type(m) for m in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert all(m.bias is None for m in head if isinstance(m, nn.Linear))


def test_target_starts_as_the_online_network_and_learns_nothing_by_gradient(method):
    for online, target in zip(method.online.parameters(), method.target.parameters(), strict=True):
        assert torch.equal(online, target) and not target.requires_grad
    method(batch_of(), NOW).loss.backward()
    assert all(p.grad is None for p in method.target.parameters())
    assert all(p.grad is not None for n, p in method.named_parameters() if p.requires_grad)
    assert method.encoder is method.online.backbone


def test_loss_is_two_minus_two_cosines_of_each_view_by_itself(method):
    batch = batch_of()
    twin = make()
    loss = method(batch, NOW).loss
    x1, x2 = batch.views["global"]
    outs = [twin.online.head(twin.online.backbone(x).pooled_BD) for x in (x1, x2)]
    targets = [twin.target.head(twin.target.backbone(x).pooled_BD) for x in (x1, x2)]
    cos = nn.CosineSimilarity(dim=1)
    expected = 4 - 2 * (cos(twin.predictor(outs[0]), targets[1]) + cos(twin.predictor(outs[1]), targets[0])).mean()
    torch.testing.assert_close(loss, expected)


def test_target_keeps_batch_statistics_of_its_own(method):
    norm = next(m for m in method.target.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.training
    before = norm.running_mean.clone()
    method(batch_of(), NOW)
    moved = norm.running_mean.clone()
    assert not torch.equal(before, moved)
    method.after_optimizer_step(NOW)  # parameters move, buffers do not
    assert torch.equal(norm.running_mean, moved)


def test_target_follows_with_the_scheduled_momentum():
    method = make(momentum=constant(0.75))
    before = method.target.head[0].weight.clone()
    with torch.no_grad():
        method.online.head[0].weight.add_(1.0)
    method.after_optimizer_step(NOW)
    torch.testing.assert_close(method.target.head[0].weight, before + 0.25, rtol=1e-4, atol=1e-5)


def test_norms_and_biases_are_neither_decayed_nor_adapted(method):
    decayed, plain = method.param_groups()
    assert all(p.ndim > 1 for p in decayed.params) and all(p.ndim <= 1 for p in plain.params)
    assert not plain.decay and not plain.adapt
    optimizer = build_optimizer(method.param_groups(), recipe("byol/debug").optim, torch.device("cpu"))
    set_rates(optimizer, 0.1, 0.2, 1e-6)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-6, 0.0]


def test_dangers_name_what_is_switched_off():
    assert BYOL.dangers(BYOLConfig()) == ()
    (sentence,) = BYOL.dangers(BYOLConfig(predictor=False))
    assert "predictor" in sentence and "--method.predictor True" in sentence
    (sentence,) = BYOL.dangers(BYOLConfig(momentum=constant(0.0)))
    assert "momentum" in sentence


def test_without_predictor_the_projection_is_compared():
    method = make(predictor=False)
    assert sum(p.numel() for p in method.predictor.parameters()) == 0
    assert torch.isfinite(method(batch_of(), NOW).loss)
