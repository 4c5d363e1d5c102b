import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.data.mask_kinds import BlockMask
from imprint.methods.cae import CAE, CAEConfig
from imprint.nn.tokenizers import Tokenizer
from imprint.ops.masking import by_row
from imprint.recipes.book import recipe, stages_of

T = Progress(0, 10, 5)
SMALL = {"heads": 2, "regressor_depth": 2, "decoder_depth": 2, "drop_path": 0.0, "vocabulary": 20}


def make(**changes) -> CAE:
    torch.manual_seed(0)
    config = recipe("cae/debug").encoder
    encoder = build_encoder(
        config.name, image_size=32, patch_size=8, positions="sincos_mocov3", arch=config.arch.overrides()
    )
    return CAE(CAEConfig(**{**SMALL, **changes}), encoder)


def batch_of(count=4, masked=8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(1, count, 16, generator=generator).argsort(-1) < masked
    views = {"global": torch.randn(1, count, 3, 32, 32, generator=generator)}
    batch = Batch(views=views, masks={"global": mask}, index_B=torch.arange(count))
    return batch.prepared(torch.device("cpu"), Normalise())


def masked_of(batch):
    return by_row(batch.places["global"], batch.masks["global"])[0]


def repainted(batch, where):
    """The images with other pixels in the given patches (B, N)."""
    images = batch.views["global"][0]
    other = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    area = where.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return torch.where(area, other, images)


def test_defaults_are_the_papers():
    cfg = CAEConfig()
    assert (cfg.align, cfg.momentum, cfg.regressor_depth, cfg.decoder_depth) == (2.0, 0.0, 4, 4)
    (mask,) = CAE.masks(cfg, 224, 16)
    assert isinstance(mask, BlockMask) and (mask.patches, mask.exact, mask.min_block) == (98, True, 16)
    (view,) = CAE.views(cfg, 224)
    assert view.look.jitter == 0.0 and view.look.flip == 0.5 and view.crop.scale == (0.08, 1.0)
    tokenizer, paper = stages_of("cae/paper")
    assert tokenizer.name == "dvae" and paper.optim.lr.peak(2048) == 1.5e-3 and paper.optim.clip == 3.0
    assert paper.encoder.drop_path == 0.1 and paper.method.tokenizer == "previous"


def test_predictions_come_from_the_visible_patches_alone():
    method, batch = make(), batch_of()
    mask, masked = batch.masks["global"][0], masked_of(batch)
    before = method.predict(batch.views["global"][0], mask, masked)
    for found, wanted in zip(method.predict(repainted(batch, mask), mask, masked), before, strict=True):
        torch.testing.assert_close(found, wanted)
    after = method.predict(repainted(batch, ~mask), mask, masked)
    assert (after[0] - before[0]).abs().max() > 1e-3


def test_the_decoder_knows_the_image_through_the_regressor_only():
    method, batch = make(align=0.0), batch_of()
    visible = []
    method.backbone.register_forward_hook(lambda *call: visible.append(call[2].patches_BND))
    cut = method.regressor.register_forward_hook(lambda *call: call[2].detach())
    loss = method(batch, T).loss
    visible[0].retain_grad()
    loss.backward()
    assert visible[0].grad is None and all(p.grad is None for p in method.backbone.parameters())
    assert all(p.grad is not None for p in method.decoder.parameters() if p.requires_grad)
    cut.remove()
    visible.clear()
    loss = method(batch, T).loss
    visible[0].retain_grad()
    loss.backward()
    assert visible[0].grad.abs().sum() > 0


def test_alignment_is_twice_the_squared_error_to_masked_patches_encoded_alone():
    method, batch = make(), batch_of()
    images, mask, masked = batch.views["global"][0], batch.masks["global"][0], masked_of(batch)
    output = method(batch, T)
    latents, _ = method.predict(images, mask, masked)
    target = method.backbone(images, keep_BM=masked).patches_BND
    align = torch.stack([(latents[b] - target[b]).square().mean() for b in range(4)]).mean()
    torch.testing.assert_close(output.metrics["cae/alignment"], align.detach())
    torch.testing.assert_close(output.loss, output.metrics["cae/decoding"] + 2 * align)
    # The target has not seen a visible patch,
    alone = method.copy(repainted(batch, ~mask), keep_BM=masked).patches_BND
    torch.testing.assert_close(alone, target)
    output.loss.backward()  # and takes no gradient.
    assert all(p.grad is None for p in method.copy.parameters())
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []


def test_masked_patches_reach_no_gradient_into_the_encoder():
    method, batch = make(), batch_of()
    images, mask = batch.views["global"][0].clone().requires_grad_(), batch.masks["global"][0]
    batch.views["global"] = images[None]
    method(batch, T).loss.backward()
    area = mask.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand_as(images)
    assert images.grad[area].abs().max() == 0 and images.grad[~area].abs().max() > 0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_copy_is_refreshed_each_step(momentum):
    method = make(momentum=momentum)
    old = [p.clone() for p in method.copy.parameters()]
    with torch.no_grad():
        for p in method.backbone.parameters():
            p.add_(1.0)
    method.after_optimizer_step(T)
    for before, now, own in zip(old, method.copy.parameters(), method.backbone.parameters(), strict=True):
        torch.testing.assert_close(now, momentum * before + (1 - momentum) * own)
        assert not now.requires_grad


@pytest.mark.parametrize("target", ["tokens", "pixels"])
def test_pictures_keep_what_was_visible(target):
    method, batch = make(target=target), batch_of()
    pictures = method.reconstruct(batch, T)
    shown = ~batch.masks["global"][0].view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    shown = shown.expand(-1, 3, -1, -1)
    assert torch.equal(pictures["visible"][shown], pictures["image"][shown])
    assert pictures["visible"][~shown].abs().max() == 0
    if target == "pixels":
        torch.testing.assert_close(pictures["reconstruction"][shown], pictures["image"][shown])
        assert pictures["reconstruction"][~shown].abs().max() > 0
    else:
        assert set(pictures) == {"image", "visible"}  # random codes stand for no picture


class Brightness(Tokenizer):
    """Two codes: a dark patch and a bright one."""

    vocabulary, stride, channels = 2, 8, 3

    def encode(self, images_BCHW):
        return (torch.nn.functional.avg_pool2d(images_BCHW.mean(1, keepdim=True), 8).flatten(1) > 0).long()

    def decode(self, tokens_BN, grid):
        return (
            tokens_BN.view(-1, 1, *grid).float().repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)
        )


class Previous(torch.nn.Module):
    tokenizer = Brightness()


def test_a_trained_tokenizer_is_taken_over_and_decodes_pictures():
    method, batch = make(tokenizer="previous"), batch_of()
    with pytest.raises(ConfigError, match="start"):
        method(batch, T)
    method.inherit(Previous())
    assert method.head.out_features == 2 and not method.tokenizer.training
    output = method(batch, T)
    assert output.loss.isfinite() and {"tokens", "reconstruction"} <= method.reconstruct(batch, T).keys()
    shown = ~batch.masks["global"][0].view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pictures = method.reconstruct(batch, T)
    shown = shown.expand(-1, 3, -1, -1)
    assert torch.equal(pictures["reconstruction"][shown], pictures["tokens"][shown])
    with pytest.raises(ConfigError, match="tokenizer"):
        make().inherit(Previous())
    with pytest.raises(ConfigError, match="has none"):
        make(tokenizer="previous").inherit(torch.nn.Linear(1, 1))


def test_small_grids_get_small_blocks_and_single_patches_are_a_switch():
    (mask,) = CAE.masks(CAEConfig(), 32, 8)
    assert (mask.patches, mask.min_block) == (8, 2)
    (single,) = CAE.masks(CAEConfig(mask="random"), 32, 8)
    assert single.ratio == 0.5


def test_what_does_not_fit_is_said():
    with pytest.raises(ConfigError, match="heads"):
        make(heads=5)
    with pytest.raises(ConfigError, match="simclr"):
        CAE(CAEConfig(), build_encoder("resnet18", image_size=32))
    assert CAE.dangers(CAEConfig(align=50.0)) and not CAE.dangers(CAEConfig())
