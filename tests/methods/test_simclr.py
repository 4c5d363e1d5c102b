import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.simclr import SimCLR, SimCLRConfig
from imprint.recipes.book import recipe


@pytest.fixture
def method():
    torch.manual_seed(0)
    config = recipe("simclr/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return SimCLR(config.method, encoder)


def batch_of(views):
    return Batch(views={"global": views}, index_B=torch.arange(views.shape[1]))


def test_defaults_are_the_papers():
    cfg = SimCLRConfig()
    assert (cfg.temperature, cfg.projection, cfg.colour, cfg.blur) == (0.1, 128, 1.0, 0.5)
    (view,) = SimCLR.views(cfg, 224)
    assert view.count == 2 and view.crop.scale == (0.08, 1.0)
    look = view.look_of(0)
    assert (look.brightness, look.contrast, look.saturation, look.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (look.jitter, look.grey, look.blur, look.flip) == (0.8, 0.2, 0.5, 0.5)


def test_equal_views_are_easier_than_unrelated_ones(method):
    t = Progress(0, 10, 5)
    same = torch.randn(1, 16, 3, 32, 32).expand(2, -1, -1, -1, -1)
    other = torch.randn(2, 16, 3, 32, 32)
    alike, apart = method(batch_of(same), t), method(batch_of(other), t)
    assert alike.loss < apart.loss
    assert alike.metrics["embedding/positive_cosine"] > 0.99 > apart.metrics["embedding/positive_cosine"]


def test_gradient_reaches_encoder_and_head_but_not_the_fixed_shift(method):
    method(batch_of(torch.randn(2, 16, 3, 32, 32)), Progress(0, 10, 5)).loss.backward()
    without = [n for n, p in method.named_parameters() if p.grad is None]
    assert without == ["branch.head.4.bias"]
    assert method.encoder is method.branch.backbone
