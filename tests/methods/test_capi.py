import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress, Steps
from imprint.data.batch import Batch, Normalise
from imprint.data.mask_kinds import InverseBlockMask
from imprint.losses.capi import balanced_assignments, clustering_loss
from imprint.methods.capi import CAPI, CAPIConfig
from imprint.nn.cross_predictor import CrossPredictor
from imprint.recipes import capi as recipes
from imprint.recipes.book import recipe
from imprint.train.optim import build_optimizer, set_rates

T = Progress(3, 10, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("capi/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, patch_size=8, registers=4, arch=config.encoder.arch)
    return CAPI(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=4, masked=10):
    torch.manual_seed(1)
    mask = torch.rand(1, count, 16).argsort(-1).argsort(-1) < masked
    batch = Batch(
        views={"global": torch.randn(1, count, 3, 32, 32)}, masks={"global": mask}, index_B=torch.arange(count) + 70
    )
    return batch.prepared(torch.device("cpu"), Normalise())


def test_defaults_are_the_papers():
    cfg = CAPIConfig()
    assert (cfg.clusters, cfg.target_temp, cfg.clustering_temp, cfg.student_temp) == (16384, 0.06, 0.12, 0.12)
    assert (cfg.mask_ratio, cfg.predict_share, cfg.sinkhorn_iterations, cfg.positionwise) == (0.65, 0.05, 3, True)
    (mask,) = CAPI.masks(cfg, 224, 14)
    assert isinstance(mask, InverseBlockMask) and (mask.grid, mask.ratio, mask.roll) == ((16, 16), 0.65, True)
    (view,) = CAPI.views(cfg, 224)
    assert view.crop.scale == (0.6, 1.0) and view.look.flip == 0.5 and view.look.jitter == 0.0
    run = recipes.paper()
    assert (run.batch_size, run.length, run.optim.betas) == (16_384, Steps(500_000), (0.9, 0.95))


def test_schedules_are_those_of_the_public_code():
    """warm-up of 50,000, then a cosine that stops at 0.8 of its half period."""
    total, warmup = 500_000, 50_000
    run = recipes.paper()
    rate, momentum = run.optim.lr.schedule(run.batch_size), run.method.momentum
    for step in (50_000, 123_456, 400_000, 499_999):
        cosine = 0.5 * (1 + math.cos(math.pi * 0.8 * (step - warmup) / (total - warmup)))
        now = Progress(step, total, 1000)
        assert rate(now) == pytest.approx(1e-3 * cosine, rel=1e-5)
        assert momentum(now) == pytest.approx(1.0 + (0.999 - 1.0) * cosine, rel=1e-9)
    assert rate(Progress(0, total, 1000)) == 0 and momentum(Progress(0, total, 1000)) == 1.0


def test_the_student_sees_only_visible_patches():
    method, batch = make().eval(), batch_of()
    mask = batch.masks["global"][0]
    seen = []
    method.student.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    method(batch, T)
    ((_, kwargs, features),) = seen
    assert features.patches_BND.shape[1] == 6
    assert not mask.gather(1, kwargs["keep_BM"]).any()


def test_the_loss_is_the_definition():
    method, batch = make(predict_share=1.0), batch_of()
    out = method(batch, T)
    images, mask = batch.views["global"][0], batch.masks["global"][0]
    logits = method.clustering(method.teacher(images).patches_BND.transpose(0, 1))
    codes = balanced_assignments(logits, 0.06, 3)
    torch.testing.assert_close(out.metrics["capi/clustering"], clustering_loss(logits, codes, 0.12).detach())
    keep = (~mask).nonzero()[:, 1].view(4, -1)
    places = mask.nonzero()[:, 1].view(4, -1)
    seen = method.student(images, keep_BM=keep)
    context = torch.cat([seen.cls_BD[:, None], seen.registers_BRD, seen.patches_BND], dim=1)
    z = F.normalize(method.predictor(context, keep, places), dim=-1)
    target = codes.transpose(0, 1)[mask].view(4, -1, 32)
    expected = clustering_loss(method.head(z), target, 0.12)
    torch.testing.assert_close(out.metrics["capi/prediction"], expected.detach())
    torch.testing.assert_close(out.loss.detach(), (expected + clustering_loss(logits, codes, 0.12)).detach())


def test_clusters_and_student_learn_apart():
    """Each loss reaches its own parameters only, and the teacher none: one optimizer is as good as two."""
    method, batch = make(), batch_of()
    method(batch, T).loss.backward()
    got = {n for n, p in method.named_parameters() if p.grad is not None}
    assert got == {n for n, p in method.named_parameters() if p.requires_grad}
    assert not any(n.startswith("teacher") for n in got)
    alone = method.assigned(batch.views["global"][0], torch.zeros(4, 1, dtype=torch.int64))[0]
    reached = torch.autograd.grad(alone, [p for p in method.parameters() if p.requires_grad], allow_unused=True)
    names = [n for n, p in method.named_parameters() if p.requires_grad]
    assert {n for n, g in zip(names, reached, strict=True) if g is not None} == {
        "clustering.layer.weight",
        "clustering.layer.bias",
    }


def test_groups_are_the_public_codes():
    method = make()
    groups = {g.name: g for g in method.param_groups()}
    assert sum(len(g.params) for g in groups.values()) == sum(p.requires_grad for p in method.parameters())
    optimizer = build_optimizer(groups.values(), recipe("capi/debug").optim, torch.device("cpu"))
    set_rates(optimizer, 1.0, 1.0, 0.1)
    rates = {g["name"]: (g["lr"], round(g["weight_decay"], 9)) for g in optimizer.param_groups}
    assert rates["clustering"] == (0.5, 0.01) and rates["rest"] == (1.0, 0.1) and rates["norm"] == (1.0, 0.01)
    assert rates["patch_embed_rest"] == (0.2, 0.1) and rates["bias"] == (1.0, 0.0)
    assert "predictor.mask_token" in groups["rest"].names and "head.gain" in groups["rest"].names


def test_places_are_drawn_by_sample_and_step():
    method, batch = make(predict_share=0.3), batch_of()
    masked = batch.masks["global"][0].nonzero()[:, 1].view(4, -1)
    first = method.chosen(masked, batch.index_B, T)
    assert first.shape == (4, 3) and batch.masks["global"][0].gather(1, first).all()
    assert all(len(set(row.tolist())) == 3 for row in first)
    torch.testing.assert_close(method.chosen(masked[2:], batch.index_B[2:], T), first[2:])
    later = torch.stack([method.chosen(masked, batch.index_B, T.at(s)) for s in range(8)])
    assert not (later == later[0]).all()


def test_the_teacher_follows():
    method = make()
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1.0)
    before = [p.clone() for p in method.teacher.parameters()]
    method.after_optimizer_step(Progress(0, 10, 5))
    for old, new, target in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.01 * (target - old))
    assert method.encoder is method.teacher


def test_predictions_at_a_place_do_not_depend_on_the_others():
    torch.manual_seed(0)
    predictor = CrossPredictor(12, 16, 2, 2, (4, 4))
    context, kept = torch.randn(2, 7, 12), torch.tensor([[0, 1, 4, 5, 9], [3, 6, 7, 8, 15]])
    places = torch.tensor([[2, 3, 10], [0, 1, 2]])
    whole = predictor(context, kept, places)
    torch.testing.assert_close(predictor(context, kept, places[:, 1:]), whole[:, 1:])
    assert whole.square().mean(-1).allclose(torch.ones(2, 3), atol=1e-2)
    moved = predictor(context, kept.flip(1), places)
    assert (moved - whole).abs().max() > 1e-3, "it knows where the context lies"
    assert (whole[0, 0] - whole[0, 1]).abs().max() > 1e-3, "and what it is asked"


def test_misfits_are_refused_by_name():
    with pytest.raises(ConfigError, match="simclr"):
        CAPI(recipe("capi/debug").method, build_encoder("resnet18", image_size=32))
    with pytest.raises(ConfigError, match="multiple of 4"):
        CrossPredictor(12, 12, 1, 2, (4, 4))
