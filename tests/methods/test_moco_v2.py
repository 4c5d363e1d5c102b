import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.core.schedules import constant
from imprint.data.batch import Batch
from imprint.methods.moco_v2 import MoCoV2, MoCoV2Config
from imprint.recipes.book import recipe


def make(**changes):
    torch.manual_seed(0)
    config = recipe("moco_v2/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return MoCoV2(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=16, seed=0):
    views = torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(views={"global": views}, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = MoCoV2Config()
    assert (cfg.queue, cfg.temperature, cfg.hidden, cfg.projection, cfg.norm_groups) == (65_536, 0.2, 2048, 128, 8)
    assert cfg.momentum(Progress(7, 100, 10)) == 0.999
    (view,) = MoCoV2.views(cfg, 224)
    assert (view.count, view.crop.size, view.crop.scale) == (2, 224, (0.2, 1.0))
    look = view.look
    assert (look.brightness, look.contrast, look.saturation, look.hue, look.jitter) == (0.4, 0.4, 0.4, 0.1, 0.8)
    assert (look.flip, look.grey, look.blur) == (0.5, 0.2, 0.5)


def test_paper_recipes():
    run, long = recipe("moco_v2/paper"), recipe("moco_v2/paper_800")
    assert (run.length.n, long.length.n, run.batch_size) == (200, 800, 256)
    lr, t = run.optim.lr.schedule(256), Progress(0, 200, 1)
    assert [lr(t.at(e)) for e in (0, 100, 200)] == pytest.approx([0.03, 0.015, 0.0])


def test_head_is_an_mlp_without_norm():
    kinds = [type(m).__name__ for m in make().contrast.query.head]
    assert kinds == ["Linear", "ReLU", "Linear"]


def test_key_encoder_follows():
    method, t = make(momentum=constant(0.75)), Progress(0, 10, 5)
    weight = method.contrast.query.head[-1].weight
    assert torch.equal(weight, method.contrast.key.head[-1].weight)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    method.after_optimizer_step(t)
    torch.testing.assert_close(method.contrast.key.head[-1].weight, before + 0.25)


def test_all_parameters_decay():
    (group,) = make().param_groups()
    assert group.decay and any(p.ndim == 1 for p in group.params)


def test_a_step_contrasts_and_moves_the_queue_and_dangers_are_named():
    method, t = make(), Progress(0, 10, 5)
    method(batch_of(), t)
    out = method(batch_of(seed=1), t)
    out.loss.backward()
    assert out.loss > 0 and method.contrast.queue.filled.item() == 32
    assert method.encoder is method.contrast.query.backbone
    assert next(method.encoder.parameters()).grad is not None
    assert MoCoV2.dangers(MoCoV2Config()) == ()
    (slow,) = MoCoV2.dangers(MoCoV2Config(momentum=constant(0.0)))
    assert "momentum starts at 0" in slow
