import dataclasses

import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.data.mask_kinds import TargetsMask
from imprint.data.mask_targets import draw_targets
from imprint.methods.ijepa import IJEPA, IJEPAConfig
from imprint.ops.patchify import patchify
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)


def make(name="vit_base_patch16_gap_224", **changes):
    torch.manual_seed(0)
    config = recipe("ijepa/debug")
    encoder = build_encoder(name, image_size=32, patch_size=8, positions="sincos", arch=config.encoder.arch)
    return IJEPA(dataclasses.replace(config.method, **changes), encoder)


def batch_of(method, count=6):
    torch.manual_seed(1)
    masks = {}
    for kind in IJEPA.masks(method.cfg, 32, 8):
        if isinstance(kind, TargetsMask):
            drawn = draw_targets(kind, 0, 3, 0, count, count)
            masks |= {name: torch.from_numpy(mask) for name, mask in drawn.items()}
        else:
            hidden = 16 - int(16 * (1 - kind.ratio))
            masks[kind.name] = torch.rand(1, count, 16).argsort(-1).argsort(-1) < hidden
    batch = Batch(views={"global": torch.randn(1, count, 3, 32, 32)}, masks=masks, index_B=torch.arange(count))
    return batch.prepared(torch.device("cpu"), Normalise())


def test_defaults_are_the_papers():
    cfg = IJEPAConfig()
    assert (cfg.targets, cfg.target_scale, cfg.target_aspect) == (4, (0.15, 0.2), (0.75, 1.5))
    assert (cfg.context_scale, cfg.min_keep, cfg.distance) == ((0.85, 1.0), 10, "smooth_l1")
    assert (cfg.predictor_width, cfg.predictor_depth, cfg.predictor_heads) == (384, 6, 12)
    assert cfg.momentum(T) == 0.996
    (view,) = IJEPA.views(cfg, 224)
    assert view.crop.scale == (0.3, 1.0) and view.look.flip == 0 and view.look.jitter == 0
    (mask,) = IJEPA.masks(cfg, 224, 16)
    assert mask == TargetsMask(name="global", grid=(14, 14))


@pytest.mark.parametrize("name", ["paper", "paper_vit_large", "paper_vit_huge"])
def test_paper_recipes_have_no_class_token_and_no_clipping(name):
    config = recipe(f"ijepa/{name}")
    assert "_gap_" in config.encoder.name and config.encoder.positions == "sincos"
    assert config.optim.clip is None and config.batch_size == 2048
    run = Progress(0, 60_000, 100)
    lr = config.optim.lr.schedule(2048)
    assert lr(run) == pytest.approx(2e-4, rel=1e-2) and lr(run.at(4000)) == pytest.approx(1e-3, rel=1e-3)


def test_loss_compares_predictions_with_normalised_tokens_of_the_whole_image():
    method = make()
    with torch.no_grad():
        for p in method.target.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = batch_of(method)
    found = method(batch, T)
    images, mask, seen = batch.views["global"][0], batch.masks["global"], batch.masks["global:context"][0]
    keep = torch.stack([row.nonzero()[:, 0] for row in seen])
    tokens = method.context(images, keep_BM=keep).patches_BND
    target = F.layer_norm(method.target(images).patches_BND, (32,))
    losses = []
    for block in mask:  # one block after the other, as the paper writes it
        where = torch.stack([row.nonzero()[:, 0] for row in block])
        pred = method.predictor(tokens, keep, where[None])
        want = target.gather(1, where[..., None].expand(-1, -1, 32))
        losses.append(F.smooth_l1_loss(pred, want))
    torch.testing.assert_close(found.loss, torch.stack(losses).mean())


def test_context_sees_nothing_of_the_targets_and_the_target_encoder_takes_no_gradient():
    method = make(min_keep=1)  # more would let targets in where four of them leave too little
    batch = batch_of(method)
    assert not (batch.masks["global"].any(0) & batch.masks["global:context"][0]).any()
    method(batch, T).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    assert all(p.grad is not None for p in method.context.parameters() if p.requires_grad)
    assert method.encoder is method.target and method.encoder.encode(batch.views["global"][0]).cls_BD is None


@pytest.mark.parametrize("layout", ["block", "random", "rasterized"])
def test_other_layouts_ask_for_what_the_context_leaves(layout):
    method = make(layout=layout)
    batch = batch_of(method)
    context, targets = method.places(batch)
    for b in range(6):
        asked = targets[:, b].flatten().tolist()
        assert sorted(context[b].tolist() + asked) == list(range(16))
    expected = {"block": (1, 16 - 9), "random": (1, 16 - 10), "rasterized": (3, 4)}[layout]
    assert (targets.shape[0], context.shape[1]) == expected
    out = method(batch, T)
    out.loss.backward()
    assert torch.isfinite(out.loss)


def test_quadrants_are_squares_and_change():
    method = make(layout="rasterized")
    context, targets = method.places(batch_of(method, count=64))
    corners = {tuple(row) for row in context.tolist()}
    assert corners == {(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)}
    assert {tuple(row) for row in targets.flatten(0, 1).tolist()} == corners


def test_pixels_as_targets():
    method = make(target="pixels")
    batch = batch_of(method)
    assert method.predictor.out.out_features == 3 * 8 * 8
    found = method(batch, T)
    context, targets = method.places(batch)
    pred = method.predictor(method.context(batch.views["global"][0], keep_BM=context).patches_BND, context, targets)
    want = F.layer_norm(patchify(batch.views["global"][0], 8), (192,))
    want = torch.cat([want.gather(1, t[..., None].expand(-1, -1, 192)) for t in targets])
    torch.testing.assert_close(found.loss, F.smooth_l1_loss(pred, want))


def test_squared_error_is_a_switch():
    method = make(distance="l2")
    batch = batch_of(method)
    assert method(batch, T).loss > make()(batch, T).loss


def test_an_encoder_with_a_class_token_works():
    method = make("vit_tiny_patch16_224")
    out = method(batch_of(method), T)
    out.loss.backward()
    assert torch.isfinite(out.loss) and method.context.model.cls_token.grad.abs().sum() > 0


def test_target_encoder_follows():
    method = make()
    before = method.target.model.norm.weight.clone()
    with torch.no_grad():
        method.context.model.norm.weight.add_(1.0)
    method.after_optimizer_step(T)
    torch.testing.assert_close(method.target.model.norm.weight, before + 0.004, atol=1e-6, rtol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="ijepa encodes a part of the patches"):
        IJEPA(IJEPAConfig(), build_encoder("resnet18", image_size=32))
    with pytest.raises(ConfigError, match="layout"):
        IJEPA.masks(IJEPAConfig(layout="spiral"), 32, 8)
    with pytest.raises(ConfigError, match="even side"):
        IJEPA.masks(IJEPAConfig(layout="rasterized"), 40, 8)
    with pytest.raises(ConfigError, match="target"):
        make(target="words")


def test_a_target_without_memory_is_a_danger():
    assert IJEPA.dangers(IJEPAConfig()) == ()
    frozen = dataclasses.replace(IJEPAConfig().momentum, start=0.0, end=0.0)
    (danger,) = IJEPA.dangers(IJEPAConfig(momentum=frozen))
    assert "momentum" in danger
