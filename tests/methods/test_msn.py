import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.losses.msn import msn_loss
from imprint.methods.msn import MSN, MSNConfig
from imprint.ops.masking import keep_from_mask
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)


@pytest.fixture
def method():
    return make()


def make(**changes):
    torch.manual_seed(0)
    config = recipe("msn/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, patch_size=8, drop_path=0.0, arch=config.encoder.arch)
    return MSN(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=6, views=2):
    torch.manual_seed(1)
    mask = (torch.rand(1, 1, 16).argsort(-1).argsort(-1) >= 13).repeat(1, count, 1)
    return Batch(
        views={"global": torch.randn(views, count, 3, 32, 32), "local": torch.randn(2, count, 3, 16, 16)},
        masks={"global": mask},
        index_B=torch.arange(count),
    )


def test_defaults_are_the_papers():
    cfg = MSNConfig()
    assert (cfg.prototypes, cfg.projection, cfg.hidden, cfg.temperature) == (1024, 256, 2048, 0.1)
    assert (cfg.memax_weight, cfg.entropy_weight, cfg.smoothing, cfg.sinkhorn_iterations) == (1.0, 0.0, 0.0, 3)
    assert cfg.sharpening(T) == 0.25
    # A straight line that would reach 1 after 1.25 times the run.
    assert cfg.momentum(T) == 0.996 and cfg.momentum(T.at(10)) == pytest.approx(0.996 + 0.004 / 1.25)
    large, small = MSN.views(cfg, 224)
    assert (large.count, large.crop.size, large.crop.scale) == (2, 224, (0.3, 1.0))
    assert (small.count, small.crop.size, small.crop.scale) == (10, 96, (0.05, 0.3))
    assert large.look == small.look
    assert (large.look.brightness, large.look.hue, large.look.blur) == (0.4, 0.1, 0.5)
    (mask,) = MSN.masks(cfg, 224, 16)
    assert (mask.ratio, mask.grid, mask.shared, mask.count) == (0.15, (14, 14), True, 1)


def test_paper_recipe_is_the_released_configuration():
    config = recipe("msn/paper")
    lr, decay = config.optim.lr.schedule(config.batch_size), config.optim.weight_decay
    run = Progress(0, 800 * 100, 100)
    assert lr(run) == pytest.approx(2e-4, rel=1e-2) and lr(run.at(1500)) == pytest.approx(1e-3, rel=1e-4)
    assert lr(run.at(80_000)) > 5e-5 and decay(run) == pytest.approx(0.04) and decay(run.at(80_000)) < 0.38
    assert config.optim.clip == 3.0 and config.batch_size == 1024


def test_loss_is_that_of_masked_and_focal_anchors_against_the_other_view(method):
    batch = batch_of()
    found = method(batch, T)
    keep = keep_from_mask(batch.masks["global"][0], 13)
    large = method.student.head(method.student.backbone(batch.views["global"][1], keep_BM=keep).pooled_BD)
    small = method.student.head(method.student.backbone(batch.views["local"].flatten(0, 1)).pooled_BD)
    target = method.teacher(batch.views["global"][:1])[0]
    expected = msn_loss(torch.cat([large, small]), target, method.prototypes.weight, sinkhorn_iterations=3)
    torch.testing.assert_close(found.loss, expected.loss)
    assert {"msn/prototypes_used", "msn/memax", "embedding/std"} <= found.metrics.keys()
    assert all(m.ndim == 0 and not m.requires_grad for m in found.metrics.values())


def test_dropped_patches_are_not_looked_at(method):
    batch = batch_of()
    before = method.masked(batch.views["global"][1:], batch.masks["global"][0])
    hidden = batch.masks["global"][0].view(-1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    changed = torch.where(hidden[None, :, None], 9.0, batch.views["global"][1:])
    torch.testing.assert_close(method.masked(changed, batch.masks["global"][0]), before)


def test_several_masked_views_share_the_draw():
    method = make(random_views=2)
    assert MSN.views(method.cfg, 32)[0].count == 3
    out = method(batch_of(views=3), T)
    out.loss.backward()
    assert torch.isfinite(out.loss)


def test_without_focal_views():
    method = make(focal_views=0)
    assert len(MSN.views(method.cfg, 32)) == 1
    batch = batch_of()
    del batch.views["local"]
    assert torch.isfinite(method(batch, T).loss)


def test_gradients_reach_anchors_and_prototypes_only(method):
    method(batch_of(), T).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.student.parameters())
    assert method.prototypes.weight.grad.abs().sum() > 0
    assert method.encoder is method.teacher.backbone


def test_target_network_follows(method):
    before = method.teacher.head[0].weight.clone()
    with torch.no_grad():
        method.student.head[0].weight.add_(1.0)
    method.after_optimizer_step(T)
    moved = method.teacher.head[0].weight - before
    torch.testing.assert_close(moved, torch.full_like(moved, 0.004), atol=1e-6, rtol=1e-4)


def test_prototypes_take_no_weight_decay(method):
    decayed, plain, free = method.param_groups()
    assert free.names == ["prototypes.weight"] and not free.decay and not free.adapt
    assert "prototypes.weight" not in decayed.names and any(n.endswith("cls_token") for n in decayed.names)
    assert all(p.ndim <= 1 for p in plain.params)
    trained = [n for n, p in method.named_parameters() if p.requires_grad]
    assert sorted(decayed.names + plain.names + free.names) == sorted(trained)


def test_safeguards_that_are_off_are_named():
    assert MSN.dangers(MSNConfig()) == ()
    (danger,) = MSN.dangers(MSNConfig(memax_weight=0.0))
    assert "memax" in danger


def test_encoders_that_cannot_drop_patches_are_refused():
    encoder = build_encoder("resnet18", image_size=32)
    with pytest.raises(ConfigError, match="msn encodes a part of the patches"):
        MSN(MSNConfig(), encoder)
