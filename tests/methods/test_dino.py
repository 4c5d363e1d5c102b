import dataclasses
import math

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Epochs, Progress, Steps
from imprint.data.batch import Batch
from imprint.methods.dino import DINO, DINOConfig
from imprint.recipes.book import recipe


@pytest.fixture
def method():
    torch.manual_seed(0)
    config = recipe("dino/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, patch_size=8, drop_path=0.5, arch=config.encoder.arch)
    return DINO(config.method, encoder)


def batch_of(count=4):
    views = {"global": torch.randn(2, count, 3, 32, 32), "local": torch.randn(2, count, 3, 16, 16)}
    return Batch(views=views, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = DINOConfig()
    assert (cfg.prototypes, cfg.hidden, cfg.bottleneck) == (65_536, 2048, 256)
    assert (cfg.student_temp, cfg.center_momentum, cfg.freeze_prototypes) == (0.1, 0.9, Epochs(1))
    run = Progress(0, 1000, 10)
    assert cfg.teacher_temp(run) == 0.04 and cfg.teacher_temp(run.at(400)) == 0.07
    assert cfg.momentum(run) == 0.996 and cfg.momentum(run.at(1000)) == 1.0
    views = {v.name: v for v in DINO.views(cfg, 224)}
    assert (views["global"].count, views["global"].crop.size, views["global"].crop.scale) == (2, 224, (0.4, 1.0))
    assert (views["local"].count, views["local"].crop.size, views["local"].crop.scale) == (8, 96, (0.05, 0.4))
    looks = [views["global"].look_of(i) for i in (0, 1)]
    assert [(k.blur, k.solarise) for k in looks] == [(1.0, 0.0), (0.1, 0.2)]
    assert views["local"].look_of(0).blur == 0.5


def test_teacher_starts_as_the_student_and_learns_nothing_by_gradient(method):
    for s, t in zip(method.student.parameters(), method.teacher.parameters(), strict=True):
        assert torch.equal(s, t) and not t.requires_grad
    method(batch_of(), Progress(0, 10, 5)).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for n, p in method.student.named_parameters() if p.requires_grad)
    assert method.encoder is method.teacher.backbone


def test_teacher_has_no_stochastic_depth(method):
    x = torch.randn(2, 8, 3, 32, 32)
    torch.testing.assert_close(method.teacher(x), method.teacher(x))
    assert not torch.equal(method.student(x), method.student(x))


def test_center_moves_in_training_only_and_after_use(method):
    batch, t = batch_of(), Progress(0, 10, 5)
    method.eval()
    method(batch, t)
    assert method.center.value.abs().max() == 0
    method.train()
    with torch.no_grad():
        expected = 0.1 * method.teacher(batch.views["global"]).flatten(0, 1).mean(0)
    method(batch, t)
    torch.testing.assert_close(method.center.value, expected)


def test_prototypes_are_frozen_at_first(method):
    t = Progress(0, 10, 5)
    method(batch_of(), t).loss.backward()
    assert method.cfg.freeze_prototypes == Steps(2)
    method.before_optimizer_step(t.at(2))
    assert method.student.head.prototypes.direction.grad is not None
    method.before_optimizer_step(t.at(1))
    assert method.student.head.prototypes.direction.grad is None


def test_teacher_follows_with_the_scheduled_momentum(method):
    t = Progress(0, 10, 5)
    before = method.teacher.head.prototypes.direction.clone()
    with torch.no_grad():
        method.student.head.prototypes.direction.add_(1.0)
    method.after_optimizer_step(t)
    moved = method.teacher.head.prototypes.direction - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.996), atol=1e-6, rtol=1e-4)


def test_entropy_is_reported_in_nats(method):
    metrics = method(batch_of(), Progress(0, 10, 5)).metrics
    assert 0 <= metrics["dino/teacher_entropy"] <= math.log(method.cfg.prototypes)


def test_public_code_decays_tokens_but_no_biases(method):
    decayed, plain = method.param_groups()
    assert any(n.endswith("cls_token") for n in decayed.names) and any(n.endswith("pos_embed") for n in decayed.names)
    assert all(p.ndim <= 1 for p in plain.params) and not plain.decay


@pytest.mark.parametrize(("rule", "copies"), [("step", (0, 1, 4)), ("epoch", (4,))])
def test_the_ablations_teacher_is_a_copy(method, rule, copies):
    method.cfg = dataclasses.replace(method.cfg, teacher_update=rule)
    for step in (0, 1, 4):  # epochs of five steps
        with torch.no_grad():
            method.student.head.prototypes.direction.add_(1.0)
        method.after_optimizer_step(Progress(step, 10, 5))
        equal = torch.equal(method.teacher.head.prototypes.direction, method.student.head.prototypes.direction)
        assert equal == (step in copies)


def test_without_centring_the_centre_stays_at_zero(method):
    method.cfg = dataclasses.replace(method.cfg, centring=False)
    method(batch_of(), Progress(0, 10, 5))
    assert method.center.value.abs().max() == 0


def test_dangers_name_what_is_off():
    assert DINO.dangers(DINOConfig()) == ()
    blunt = dataclasses.replace(DINOConfig().teacher_temp, start=0.1)
    assert len(DINO.dangers(DINOConfig(centring=False, teacher_update="step", teacher_temp=blunt))) == 3
