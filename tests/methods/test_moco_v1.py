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
from imprint.losses.info_nce import info_nce_queue
from imprint.methods.moco_v1 import MoCoV1, MoCoV1Config
from imprint.nn.split_norm import SplitBatchNorm, encode_keys
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


def test_loss_is_against_the_queue_of_earlier_batches():
    method, t = make(), Progress(3, 10, 5)
    first = method(batch_of(), t)
    assert first.loss.item() == pytest.approx(0.0, abs=1e-6)  # nothing to tell the positive from yet
    assert method.contrast.queue.filled.item() == method.contrast.queue.pointer.item() == 16
    assert first.metrics["moco/queue_filled"] == 0 and first.metrics["moco/accuracy"] == 1
    held = method.contrast.queue.keys.clone()
    batch = batch_of(seed=1)
    loss = method(batch, t).loss
    views = batch.views["global"]
    q, (k, _) = method.contrast.query(views[:1])[0], encode_keys(method.contrast.key, views[1:], 3)
    torch.testing.assert_close(loss, info_nce_queue(q, k, held[:16], 0.07))
    torch.testing.assert_close(method.contrast.queue.keys[16:32], torch.nn.functional.normalize(k, dim=1))


def test_evaluation_mode_leaves_the_queue():
    method = make().eval()
    method(batch_of(), Progress(0, 10, 5))
    assert method.contrast.queue.filled.item() == 0


def test_a_queue_that_the_batch_does_not_divide_is_refused_before_any_work():
    with pytest.raises(ConfigError, match="choose a queue of 48 or 72 keys"):
        make().check_batch(24)


def test_groups_that_the_batch_does_not_fill_are_refused():
    method = make()
    method.check_batch(16)
    with pytest.raises(ConfigError, match="batch-norm groups"):
        method.check_batch(2)  # one image in each of the two groups


def test_a_run_with_such_a_batch_leaves_nothing_behind(tmp_path):
    config = dataclasses.replace(recipe("moco_v1/debug"), batch_size=24, device="cpu", workers=1)
    images = ArraySource(np.zeros((48, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(ConfigError, match="no multiple of the 24 keys"):
        train(config, tmp_path / "run", source=images)
    assert not (tmp_path / "run").exists()


def test_gradient_reaches_all_of_the_query_encoder_and_nothing_else():
    method, t = make(), Progress(0, 10, 5)
    method(batch_of(), t)
    method(batch_of(seed=1), t).loss.backward()
    assert all(p.grad is not None for p in method.contrast.query.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.contrast.key.parameters())
    assert method.contrast.query.head.weight.grad.norm() > 1e-3
    assert method.encoder is method.contrast.query.backbone


def test_key_encoder_follows():
    method, t = make(momentum=constant(0.75)), Progress(0, 10, 5)
    weight = method.contrast.query.head.weight
    assert torch.equal(weight, method.contrast.key.head.weight)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    method.after_optimizer_step(t)
    torch.testing.assert_close(method.contrast.key.head.weight, before + 0.25)


def test_batch_statistics_are_of_groups_and_shuffled():
    method = make()
    norms = [m for m in method.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, SplitBatchNorm) and m.groups == 2 for m in norms)
    batch, t = batch_of(), Progress(0, 10, 5)
    shuffled, straight = make(), make(shuffle=False)
    shuffled(batch, t), straight(batch, t)
    assert (shuffled.contrast.queue.keys[:16] - straight.contrast.queue.keys[:16]).abs().max() > 1e-3
    assert not any(isinstance(m, SplitBatchNorm) for m in make(norm_groups=1).modules())


def test_all_parameters_decay():
    (group,) = make().param_groups()
    assert group.decay and any(p.ndim == 1 for p in group.params)


def test_dangers_name_what_is_off():
    assert MoCoV1.dangers(MoCoV1Config()) == ()
    (slow,) = MoCoV1.dangers(MoCoV1Config(momentum=constant(0.0)))
    assert "momentum starts at 0" in slow and "--method.momentum.start" in slow
    (groups,) = MoCoV1.dangers(MoCoV1Config(norm_groups=1))
    assert "--method.norm-groups 8" in groups
    (order,) = MoCoV1.dangers(MoCoV1Config(shuffle=False))
    assert "--method.shuffle True" in order
