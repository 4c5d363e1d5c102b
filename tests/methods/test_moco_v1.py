import dataclasses

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.schedules import constant
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch
from imprint.methods.moco_v1 import MoCoV1, MoCoV1Config
from imprint.recipes.book import recipe
from imprint.train.loop import train


def make(**changes):
    torch.manual_seed(0)
    config = recipe("moco_v1/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return MoCoV1(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=16, seed=0):
    views = torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(views={"global": views}, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = MoCoV1Config()
    assert (cfg.queue, cfg.temperature, cfg.projection, cfg.norm_groups, cfg.shuffle) == (65_536, 0.07, 128, 8, True)
    assert cfg.momentum(Progress(7, 100, 10)) == 0.999
    (view,) = MoCoV1.views(cfg, 224)
    assert (view.count, view.crop.size, view.crop.scale) == (2, 224, (0.2, 1.0))
    look = view.look
    assert (look.brightness, look.contrast, look.saturation, look.hue, look.jitter) == (0.4, 0.4, 0.4, 0.4, 1.0)
    assert (look.flip, look.grey, look.blur) == (0.5, 0.2, 0.0)


def test_paper_recipe():
    run = recipe("moco_v1/paper")
    assert (run.encoder.name, run.batch_size, run.encoder.arch.zero_init_last) == ("resnet50", 256, False)
    lr, t = run.optim.lr.schedule(256), Progress(0, 200, 1)
    assert [lr(t.at(e)) for e in (0, 119, 120, 160)] == pytest.approx([0.03, 0.03, 0.003, 0.0003])


def test_head():
    head = make().contrast.query.head
    assert isinstance(head, torch.nn.Linear) and head.out_features == 16 and head.bias is not None


def test_a_run_with_such_a_batch_leaves_nothing_behind(tmp_path):
    config = dataclasses.replace(recipe("moco_v1/debug"), batch_size=24, device="cpu", workers=1)
    images = ArraySource(np.zeros((48, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(ConfigError, match="no multiple of the 24 keys"):
        train(config, tmp_path / "run", source=images)
    assert not (tmp_path / "run").exists()


def test_key_encoder_follows():
    method, t = make(momentum=constant(0.75)), Progress(0, 10, 5)
    weight = method.contrast.query.head.weight
    assert torch.equal(weight, method.contrast.key.head.weight)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    method.after_optimizer_step(t)
    torch.testing.assert_close(method.contrast.key.head.weight, before + 0.25)


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
    assert MoCoV1.dangers(MoCoV1Config()) == ()
    (slow,) = MoCoV1.dangers(MoCoV1Config(momentum=constant(0.0)))
    assert "momentum starts at 0" in slow
