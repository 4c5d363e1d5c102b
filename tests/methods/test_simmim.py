import dataclasses

import numpy as np
import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress, Steps
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch
from imprint.data.mask_kinds import BlockMask, UnitMask
from imprint.losses.simmim import masked_pixel_loss
from imprint.methods.simmim import SimMIM, SimMIMConfig
from imprint.recipes.book import recipe
from imprint.train.config import EncoderConfig
from imprint.train.loop import train

T = Progress(0, 10, 5)
SWIN = {
    "name": "swin_tiny_patch4_window7_224",
    "patch_size": 4,
    "arch": Arch(embed_dim=16, layers=(2, 2), heads=(2, 4), window=4),
}


def method_of(kind="vit", **changes):
    torch.manual_seed(0)
    config = recipe("simmim/debug").encoder
    options = SWIN if kind == "swin" else {"name": config.name, "patch_size": 8, "arch": config.arch}
    return SimMIM(SimMIMConfig(mask_unit=8, **changes), build_encoder(**{"image_size": 32, **options}))


def batch_of(count=4, masked=10):
    mask = torch.rand(1, count, 16).argsort(-1).argsort(-1) < masked
    return Batch(
        views={"global": torch.randn(1, count, 3, 32, 32)}, masks={"global": mask}, index_B=torch.arange(count)
    )


def test_defaults_are_the_papers():
    cfg = SimMIMConfig()
    assert (cfg.mask_ratio, cfg.mask_unit, cfg.error, cfg.head_layers) == (0.6, 32, "l1", 1)
    (view,) = SimMIM.views(cfg, 192)
    assert view.crop.scale == (0.67, 1.0) and view.look.flip == 0.5 and view.look.jitter == 0.0
    assert SimMIM.masks(cfg, 192, 32) == (UnitMask(name="global", grid=(6, 6), unit=1, ratio=0.6),)
    assert SimMIM.masks(cfg, 224, 16) == (UnitMask(name="global", grid=(14, 14), unit=2, ratio=0.6),)


def test_blocks_are_a_switch_and_units_must_fit():
    (mask,) = SimMIM.masks(SimMIMConfig(mask_shape="block"), 224, 16)
    assert isinstance(mask, BlockMask) and mask.patches == 118
    with pytest.raises(ConfigError, match="--method.mask-unit"):
        SimMIM.masks(SimMIMConfig(), 32, 64)
    with pytest.raises(ConfigError, match="divide the image"):
        SimMIM.masks(SimMIMConfig(), 48, 16)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_masked_pixels_are_hidden_and_only_they_count(kind):
    method, batch = method_of(kind), batch_of()
    image, mask = batch.views["global"][0], batch.masks["global"][0]
    hidden = mask.view(4, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(image)
    changed = torch.where(hidden, 9.0, image)
    before = method.predict(image, mask)
    assert before.shape == image.shape
    torch.testing.assert_close(method.predict(changed, mask), before)
    before.retain_grad()
    masked_pixel_loss(before, image, mask.view(4, 4, 4)).backward()
    assert (before.grad[~hidden] == 0).all() and (before.grad[hidden] != 0).all()
    # the mean over masked values, written out
    expected = (before - image).abs()[hidden].mean()
    torch.testing.assert_close(method(batch, T).loss, expected.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_all_trainable_parameters_learn(kind):
    method = method_of(kind)
    method(batch_of(), T).loss.backward()
    idle = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert method.backbone.mask_token.grad.abs().sum() > 0


def test_switches_change_what_is_predicted():
    batch = batch_of()
    image, mask = batch.views["global"][0], batch.masks["global"][0]
    whole = method_of(predict="all")
    expected = (whole.predict(image, mask) - image).abs().mean()
    torch.testing.assert_close(whole(batch, T).loss, expected, rtol=1e-5, atol=1e-5)
    assert len(method_of(head_layers=2).head.layers) == 3
    squared = method_of(error="l2")
    error = (squared.predict(image, mask) - image).square()
    hidden = mask.view(4, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None].expand_as(image)
    torch.testing.assert_close(squared(batch, T).loss, error[hidden].mean(), rtol=1e-5, atol=1e-5)


def test_reconstruction_keeps_what_was_visible():
    method, batch = method_of(), batch_of()
    pictures = method.reconstruct(batch, T)
    assert set(pictures) == {"image", "visible", "reconstruction"}
    keep = ~batch.masks["global"][0].view(4, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    keep = keep.expand(-1, 3, -1, -1)
    torch.testing.assert_close(pictures["reconstruction"][keep], pictures["image"][keep])
    assert not torch.equal(pictures["reconstruction"], pictures["image"])
    assert pictures["visible"][~keep].abs().max() == 0


def test_a_cnn_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"a ViT or a Swin.*simclr"):
        SimMIM(SimMIMConfig(), build_encoder("resnet18", image_size=32))


@pytest.mark.parametrize("shape", ["random", "block"])
def test_a_swin_trains_and_exports_without_its_mask_token(shape, tmp_path):
    rng = np.random.default_rng(0)
    images = ArraySource(rng.integers(0, 256, (32, 32, 32, 3), dtype=np.uint8), np.arange(32) % 2)
    plan = recipe("simmim/debug")
    encoder = EncoderConfig(image_size=32, **SWIN)
    method = dataclasses.replace(plan.method, mask_shape=shape)
    plan = dataclasses.replace(plan, encoder=encoder, method=method, length=Steps(3), device="cpu", workers=1)
    run = train(plan, tmp_path / "run", source=images)
    assert run.finished
    features = run.encoder()(torch.zeros(2, 3, 32, 32))
    assert features.grid == (4, 4) and features.cls_BD is None and features.patches_BND.shape == (2, 16, 32)


def test_recipes_build_what_the_paper_describes():
    swin = recipe("simmim/paper_swin_base").encoder
    assert (swin.image_size, swin.arch.window) == (192, 6)
    vit = recipe("simmim/paper").encoder
    assert vit.arch.relative_positions == "shared" and vit.arch.absolute_positions is False
    plan = recipe("simmim/paper")
    assert plan.optim.lr.peak(plan.batch_size) == pytest.approx(4e-4)
    assert recipe("simmim/paper_swin_base").optim.lr.peak(2048) == pytest.approx(8e-4)
