import dataclasses

import pytest
import torch
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.core.progress import Epochs, Progress
from imprint.data.batch import Batch
from imprint.methods.simsiam import SimSiam, SimSiamConfig
from imprint.recipes import simsiam as recipes
from imprint.recipes.book import recipe
from imprint.train.optim import build_optimizer, set_rates

NOW = Progress(0, 10, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("simsiam/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return SimSiam(dataclasses.replace(config.method, **changes), encoder)


@pytest.fixture
def method():
    return make()


def batch_of(count=6):
    torch.manual_seed(1)
    return Batch(views={"global": torch.randn(2, count, 3, 32, 32)}, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = SimSiamConfig()
    assert (cfg.projection, cfg.layers, cfg.predictor_hidden, cfg.stop_gradient) == (2048, 3, 512, True)
    (view,) = SimSiam.views(cfg, 224)
    look = view.look_of(0)
    assert (view.count, view.crop.scale, look.blur, look.grey) == (2, (0.2, 1.0), 0.5, 0.2)
    assert (look.brightness, look.contrast, look.saturation, look.hue) == (0.4, 0.4, 0.4, 0.1)
    run = recipes.paper()
    assert (run.optim.name, run.optim.lr.base, run.batch_size, run.length) == ("sgd", 0.05, 512, Epochs(100))
    assert run.optim.lr.schedule(512)(NOW) == 0.1 and run.optim.weight_decay(NOW) == 1e-4


def test_projector_and_predictor_are_the_papers():
    method = make(layers=3)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    head = list(method.branch.head)
    assert [type(m) for m in head] == [*kinds, *kinds, nn.Linear, nn.BatchNorm1d]
    assert all(m.bias is None for m in head if isinstance(m, nn.Linear))
    assert head[-1].weight is None and head[-1].bias is None  # no gain, no shift
    assert [type(m) for m in method.predictor] == [*kinds, nn.Linear]
    assert method.predictor[0].bias is None and method.predictor[3].bias is not None
    assert isinstance(make(output_norm=False).branch.head[-1], nn.Linear)


def test_residual_gains_start_at_zero(method):
    last = [m.weight for n, m in method.encoder.named_modules() if n.endswith("bn2") and hasattr(m, "weight")]
    assert last and all(w.abs().max() == 0 for w in last)


def test_weight_decay_covers_all_and_the_predictors_rate_stays(method):
    groups = {g.name: g for g in method.param_groups()}
    assert groups["branch"].decay and groups["predictor"].decay
    assert groups["predictor"].constant_lr and not groups["branch"].constant_lr
    assert all(n.startswith("predictor.") for n in groups["predictor"].names)
    trained = sum(p.requires_grad for p in method.parameters())
    assert sum(len(g.params) for g in groups.values()) == trained
    optimizer = build_optimizer(method.param_groups(), recipe("simsiam/debug").optim, torch.device("cpu"))
    set_rates(optimizer, 0.01, 0.1, 1e-4)
    rates = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert rates == {"branch": (0.01, 1e-4), "predictor": (0.1, 1e-4)}
    assert not any(g.constant_lr for g in make(predictor_constant_lr=False).param_groups())


def test_loss_is_the_negative_cosine_of_each_view_by_itself(method):
    batch, twin = batch_of(), make()
    loss = method(batch, NOW).loss
    z = [twin.branch.head(twin.branch.backbone(x).pooled_BD) for x in batch.views["global"]]
    cos = nn.CosineSimilarity(dim=1)
    expected = -0.5 * (cos(twin.predictor(z[0]), z[1]) + cos(twin.predictor(z[1]), z[0])).mean()
    torch.testing.assert_close(loss, expected)


def test_gradient_passes_through_the_predictor_only():
    def gradient(stop):
        method = make(stop_gradient=stop)
        with torch.no_grad():
            method.predictor[3].weight.zero_()  # predictions are the bias alone: nothing reaches z through them
        method.zero_grad()
        method(batch_of(), NOW).loss.backward()
        return max(float(p.grad.abs().max()) for p in method.branch.parameters())

    assert gradient(True) == 0.0
    assert gradient(False) > 1e-4


def test_every_parameter_learns_and_the_encoder_is_bare(method):
    method(batch_of(), NOW).loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert method.encoder is method.branch.backbone


def test_dangers_name_what_is_switched_off():
    assert SimSiam.dangers(SimSiamConfig()) == ()
    (sentence,) = SimSiam.dangers(SimSiamConfig(stop_gradient=False))
    assert "stop_gradient" in sentence and "--method.stop-gradient True" in sentence
