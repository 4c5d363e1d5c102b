import dataclasses

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.progress import Epochs, Progress
from imprint.data.batch import Batch
from imprint.methods.lejepa import LeJEPA, LeJEPAConfig
from imprint.recipes import lejepa as recipes
from imprint.recipes.book import recipe

T = Progress(3, 10, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("lejepa/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, patch_size=8, arch=config.encoder.arch)
    return LeJEPA(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=6):
    torch.manual_seed(1)
    views = {"global": torch.randn(2, count, 3, 32, 32), "local": torch.randn(2, count, 3, 16, 16)}
    return Batch(views=views, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = LeJEPAConfig()
    assert (cfg.lambd, cfg.slices, cfg.points, cfg.t_max) == (0.05, 1024, 17, 3.0)
    large, small = LeJEPA.views(cfg, 224)
    assert (large.count, large.crop.size, large.crop.scale) == (2, 224, (0.3, 1.0))
    assert (small.count, small.crop.size, small.crop.scale) == (6, 98, (0.05, 0.3))
    assert large.look == small.look and large.look.solarise == 0.2 and large.look.blur == 0.5
    assert len(LeJEPA.views(dataclasses.replace(cfg, local_crops=0), 224)) == 1
    run = recipes.paper()
    assert (run.optim.lr.base, run.optim.lr.end, run.length) == (5e-4, 1e-3, Epochs(100))
    assert run.optim.weight_decay(T) == 5e-2 and recipes.paper_resnet50().optim.weight_decay(T) == 5e-4


def test_loss_is_the_two_terms(monkeypatch):
    method = make(lambd=0.25)
    out = method(batch_of(), T)
    m = out.metrics
    expected = 0.75 * m["lejepa/prediction"] + 0.25 * m["lejepa/sigreg"]
    torch.testing.assert_close(out.loss.detach(), expected)
    assert set(m) >= {"embedding/positive_cosine", "embedding/std"}


def test_prediction_is_to_the_mean_of_the_global_views():
    method = make()
    z = torch.randn(4, 5, 3, dtype=torch.float64)
    center = (z[0] + z[1]) / 2
    expected = sum(((view - center) ** 2).mean() for view in z) / 4
    torch.testing.assert_close(method.prediction(z), expected)
    assert method.prediction(z.bfloat16()).dtype == torch.float32


def test_directions_are_fresh_every_step_and_the_same_within_one():
    method, batch = make(), batch_of()
    with torch.no_grad():
        values = [method(batch, T.at(step)).metrics["lejepa/sigreg"] for step in (3, 3, 4)]
    assert values[0] == values[1] != values[2]


def test_gradients_reach_every_parameter():
    method = make()
    method(batch_of(), T).loss.backward()
    # A linear layer's bias before a BatchNorm does not exist, so nothing is dead.
    assert [n for n, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_cnn_will_do():
    encoder = build_encoder(
        "resnet18", image_size=32, stem="cifar", arch=Arch(layers=(1, 1, 1, 1), channels=(8, 8, 8, 16))
    )
    method = LeJEPA(recipe("lejepa/debug").method, encoder)
    assert method(batch_of(), T).loss.isfinite() and method.encoder is encoder


@pytest.mark.parametrize(("lambd", "count"), [(0.05, 0), (0.0, 1)])
def test_no_regularisation_is_a_danger(lambd, count):
    dangers = LeJEPA.dangers(LeJEPAConfig(lambd=lambd))
    assert len(dangers) == count and all("lambd" in d for d in dangers)
