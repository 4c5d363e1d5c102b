import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.schedules import constant
from imprint.data.batch import Batch
from imprint.losses.info_nce import info_nce_queue
from imprint.methods.moco_v2 import MoCoV2, MoCoV2Config
from imprint.nn.split_norm import SplitBatchNorm, encode_keys
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
    torch.testing.assert_close(loss, info_nce_queue(q, k, held[:16], 0.2))
    torch.testing.assert_close(method.contrast.queue.keys[16:32], torch.nn.functional.normalize(k, dim=1))


def test_evaluation_mode_leaves_the_queue():
    method = make().eval()
    method(batch_of(), Progress(0, 10, 5))
    assert method.contrast.queue.filled.item() == 0


def test_a_queue_that_the_batch_does_not_divide_is_refused_before_any_work():
    with pytest.raises(ConfigError, match="choose a queue of 48 or 72 keys"):
        make().check_batch(24)


def test_gradient_reaches_all_of_the_query_encoder_and_nothing_else():
    method, t = make(), Progress(0, 10, 5)
    method(batch_of(), t)
    method(batch_of(seed=1), t).loss.backward()
    assert all(p.grad is not None for p in method.contrast.query.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.contrast.key.parameters())
    assert method.contrast.query.head[-1].weight.grad.norm() > 1e-3
    assert method.encoder is method.contrast.query.backbone


def test_key_encoder_follows():
    method, t = make(momentum=constant(0.75)), Progress(0, 10, 5)
    weight = method.contrast.query.head[-1].weight
    assert torch.equal(weight, method.contrast.key.head[-1].weight)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    method.after_optimizer_step(t)
    torch.testing.assert_close(method.contrast.key.head[-1].weight, before + 0.25)


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
    assert MoCoV2.dangers(MoCoV2Config()) == ()
    (slow,) = MoCoV2.dangers(MoCoV2Config(momentum=constant(0.0)))
    assert "momentum starts at 0" in slow and "--method.momentum.start" in slow
    (groups,) = MoCoV2.dangers(MoCoV2Config(norm_groups=1))
    assert "--method.norm-groups 8" in groups
    (order,) = MoCoV2.dangers(MoCoV2Config(shuffle=False))
    assert "--method.shuffle True" in order
