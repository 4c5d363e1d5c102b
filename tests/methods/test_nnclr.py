import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress
from imprint.data.batch import Batch
from imprint.methods.nnclr import NNCLR, NNCLRConfig
from imprint.recipes import nnclr as recipes
from imprint.recipes.book import recipe

NOW = Progress(0, 10, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("nnclr/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return NNCLR(dataclasses.replace(config.method, **changes), encoder)


@pytest.fixture
def method():
    return make()


def batch_of(count=8, seed=1):
    torch.manual_seed(seed)
    return Batch(views={"global": torch.randn(2, count, 3, 32, 32)}, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = NNCLRConfig()
    assert (cfg.temperature, cfg.queue, cfg.projection) == (0.1, 98_304, 256)
    assert (cfg.hidden, cfg.predictor_hidden) == (2048, 4096)
    (view,) = NNCLR.views(cfg, 224)
    look = view.look_of(0)
    assert (view.crop.scale, look.brightness, look.hue, look.blur) == ((0.08, 1.0), 0.8, 0.2, 0.5)
    run = recipes.paper()
    assert (run.optim.name, run.optim.lr.base, run.batch_size, run.length) == ("lars", 0.3, 4096, Epochs(1000))
    assert cfg.queue % run.batch_size == 0


def test_heads_are_the_papers(method):
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(m) for m in method.branch.head] == [*kinds, *kinds, nn.Linear, nn.BatchNorm1d]
    assert method.branch.head[-1].affine
    assert [type(m) for m in method.predictor] == [*kinds, nn.Linear]


def reference(method, batch, support):
    """Algorithm 1 of the paper on plain tensors; an empty support set gives every row itself."""
    z = [F.normalize(method.branch.head(method.branch.backbone(x).pooled_BD), dim=1) for x in batch.views["global"]]
    raw = [method.branch.head(method.branch.backbone(x).pooled_BD) for x in batch.views["global"]]
    p = [F.normalize(method.predictor(x), dim=1) for x in raw]
    near = []
    for rows in z:
        rows = rows.detach()
        if len(support):
            best, place = (rows @ support.T).max(dim=1)
            rows = torch.where((best > 0)[:, None], support[place], rows)
        near.append(rows)
    labels = torch.arange(len(z[0]))
    directions = ((near[0], p[1]), (near[1], p[0]))
    return sum(F.cross_entropy(n @ q.T / method.cfg.temperature, labels) for n, q in directions) / 2, z[0].detach()


def test_first_step_takes_each_row_for_its_own_neighbour_and_the_second_searches(method):
    twin = make()
    first, second = batch_of(), batch_of(seed=2)
    expected, pushed = reference(twin, first, torch.zeros(0, 16))
    out = method(first, NOW)
    torch.testing.assert_close(out.loss, expected)
    assert out.metrics["nnclr/found"] == 0
    assert out.metrics["nnclr/neighbour_cosine"].item() == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(method.support.keys[:8], pushed)
    assert int(method.support.filled) == 8
    expected, _ = reference(twin, second, pushed)
    out = method(second, NOW)
    torch.testing.assert_close(out.loss, expected)
    assert out.metrics["nnclr/found"] > 0.5 and out.metrics["nnclr/neighbour_cosine"] < 1


def test_neighbours_are_the_nearest_stored_rows(method):
    torch.manual_seed(3)
    rows = F.normalize(torch.randn(64, 16), dim=1)
    method.support.load(rows)
    z = torch.randn(5, 16)
    near, found = method.neighbours(z)
    assert found.all()
    torch.testing.assert_close(near, rows[(z @ rows.T).argmax(1)])


def test_gradient_reaches_predictions_and_not_neighbours(method):
    method(batch_of(), NOW).loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    with torch.no_grad():
        method.predictor[3].weight.zero_()
    method.zero_grad()
    method(batch_of(), NOW).loss.backward()
    assert max(float(p.grad.abs().max()) for p in method.branch.parameters()) == 0.0
    assert method.encoder is method.branch.backbone


def test_the_support_set_is_in_the_checkpoint_and_moves_in_training_only(method):
    assert {"support.keys", "support.pointer", "support.filled"} <= method.state_dict().keys()
    method.eval()
    method(batch_of(), NOW)
    assert int(method.support.filled) == 0
    method.train()
    for step in range(9):
        method(batch_of(seed=step), NOW)
    assert int(method.support.filled) == 64 and int(method.support.pointer) == 8


def test_a_batch_that_does_not_fit_the_support_set_is_refused():
    with pytest.raises(ConfigError, match="no multiple"):
        make(queue=12).check_batch(8)
