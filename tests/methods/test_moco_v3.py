import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.progress import Progress
from imprint.core.schedules import constant
from imprint.data.batch import Batch
from imprint.losses.info_nce import mocov3_loss
from imprint.methods.moco_v3 import MoCoV3, MoCoV3Config
from imprint.ops.positions import sincos_2d
from imprint.recipes.book import recipe


def vit(**changes):
    torch.manual_seed(0)
    config = recipe("moco_v3/debug")
    e = config.encoder
    encoder = build_encoder(e.name, image_size=32, patch_size=8, positions=e.positions, init=e.init, arch=e.arch)
    return MoCoV3(dataclasses.replace(config.method, **changes), encoder)


def cnn(**changes):
    torch.manual_seed(0)
    arch = {"layers": [1] * 4, "channels": [8] * 4}
    encoder = build_encoder("resnet18", image_size=32, stem="cifar", arch=arch)
    return MoCoV3(dataclasses.replace(recipe("moco_v3/debug").method, **changes), encoder)


def batch_of(count=8):
    views = torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(views={"global": views}, index_B=torch.arange(count))


def layers(head):
    return [(type(m).__name__, getattr(m, "affine", getattr(m, "bias", None) is not None)) for m in head]


HIDDEN = [("Linear", False), ("BatchNorm1d", True), ("ReLU", False)]
END = [("Linear", False), ("BatchNorm1d", False)]


def test_defaults_are_the_papers():
    cfg = MoCoV3Config()
    assert (cfg.temperature, cfg.hidden, cfg.projection) == (0.2, 4096, 256)
    assert cfg.freeze_patch_projection and cfg.decay_all
    run = Progress(0, 100, 10)
    assert cfg.momentum(run) == 0.99 and cfg.momentum(run.at(100)) == 1.0
    (view,) = MoCoV3.views(cfg, 224)
    assert view.crop.scale == (0.08, 1.0)
    assert [(k.blur, k.solarise) for k in view.looks] == [(1.0, 0.0), (0.1, 0.2)]


def test_paper_recipes():
    small, base, cnn = (recipe(f"moco_v3/{name}") for name in ("paper", "paper_vit_base", "paper_resnet50"))
    assert small.encoder.arch.num_heads == 12 and base.encoder.name == "vit_base_patch16_224"
    for run in (small, base):
        assert (run.batch_size, run.length.n, run.encoder.positions) == (4096, 300, "sincos_mocov3")
        assert run.optim.lr.peak(4096) == pytest.approx(2.4e-3) and run.optim.weight_decay.start == 0.1
    assert (cnn.optim.name, cnn.optim.lars, cnn.optim.weight_decay.start) == ("lars", "mocov3", 1.5e-6)
    assert (cnn.method.temperature, cnn.method.momentum.start, cnn.method.crop_scale) == (1.0, 0.996, (0.2, 1.0))
    assert not cnn.method.decay_all


def test_heads_of_a_vit_and_of_a_cnn():
    method = vit()
    assert layers(method.query.head) == HIDDEN + HIDDEN + END
    assert layers(method.predictor) == HIDDEN + END
    method = cnn()
    assert layers(method.query.head) == HIDDEN + END
    assert layers(method.predictor) == [*HIDDEN, ("Linear", False)]
    bare = vit(head_norm=False, predictor=False)
    assert layers(bare.query.head) == [("Linear", False), ("ReLU", False)] * 2 + [("Linear", False)]
    assert isinstance(bare.predictor, torch.nn.Identity)


def test_loss_contrasts_each_view_with_the_others_keys_a_view_at_a_time():
    method, batch = cnn(), batch_of()
    loss = method(batch, Progress(0, 10, 5)).loss
    one, two = batch.views["global"].split(1)
    q1, q2 = (method.predictor(method.query(v)[0]) for v in (one, two))
    k1, k2 = (method.key(v)[0] for v in (one, two))
    torch.testing.assert_close(loss, mocov3_loss(q1, q2, k1, k2, 0.2))


@pytest.mark.parametrize("make", [vit, cnn])
def test_gradient_reaches_the_query_side_only(make):
    method = make()
    method(batch_of(), Progress(0, 10, 5)).loss.backward()
    trained = [*method.query.parameters(), *method.predictor.parameters()]
    assert all(p.grad is not None for p in trained if p.requires_grad)
    assert all(p.grad is None and not p.requires_grad for p in method.key.parameters())
    assert method.encoder is method.query.backbone


def test_a_vit_keeps_its_patch_projection_and_its_positions():
    method = vit()
    frozen = {n for n, p in method.query.named_parameters() if not p.requires_grad}
    assert frozen == {
        "backbone.model.patch_embed.proj.weight", "backbone.model.patch_embed.proj.bias", "backbone.model.pos_embed",
    }  # fmt: skip
    model = method.query.backbone.model
    torch.testing.assert_close(model.pos_embed[0, 1:], sincos_2d(32, (4, 4), layout="mocov3").float())
    assert model.pos_embed[0, 0].abs().max() == 0 and model.cls_token.abs().max() < 1e-4
    assert model.patch_embed.proj.bias.abs().max() == 0
    bound = (6 / (32 + 32)) ** 0.5  # queries, keys and values are a matrix each
    assert 0.9 * bound < model.blocks[0].attn.qkv.weight.abs().max() <= bound
    free = vit(freeze_patch_projection=False)
    assert free.query.backbone.model.patch_embed.proj.weight.requires_grad


def test_representation_is_the_class_token():
    method, images = vit().eval(), torch.randn(2, 3, 32, 32)
    features = method.encoder(images)
    torch.testing.assert_close(features.pooled_BD, features.cls_BD)


def test_key_encoder_follows_with_the_momentum_of_the_coming_step():
    method, t = cnn(momentum=constant(0.75)), Progress(0, 10, 5)
    weight = method.query.head[0].weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    method.after_optimizer_step(t)
    torch.testing.assert_close(method.key.head[0].weight, before + 0.25)
    last = cnn()
    with torch.no_grad():
        last.query.head[0].weight.add_(1.0)
    kept = last.key.head[0].weight.clone()
    last.after_optimizer_step(t.at(9))  # the update of step 10 of 10, where m is 1
    assert torch.equal(last.key.head[0].weight, kept)


def test_weight_decay_on_all_or_on_matrices():
    (everything,) = vit().param_groups()
    assert everything.decay and any(p.ndim == 1 for p in everything.params)
    assert all(p.requires_grad for p in everything.params)
    decayed, plain = cnn(decay_all=False).param_groups()
    assert all(p.ndim > 1 for p in decayed.params) and not plain.decay and not plain.adapt


def test_dangers_name_what_is_off():
    assert MoCoV3.dangers(MoCoV3Config()) == ()
    one, two = MoCoV3.dangers(MoCoV3Config(momentum=constant(0.0), freeze_patch_projection=False))
    assert "--method.momentum.start 0.99" in one and "--method.freeze-patch-projection True" in two
