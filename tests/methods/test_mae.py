import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.mae import MAE, MAEConfig
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)


@pytest.fixture
def method():
    torch.manual_seed(0)
    config = recipe("mae/debug")
    encoder = build_encoder(
        config.encoder.name, image_size=32, patch_size=8, positions="sincos", arch=config.encoder.arch
    )
    return MAE(config.method, encoder)


def batch_of(count=4, masked=12):
    noise = torch.rand(1, count, 16)
    mask = noise.argsort(-1).argsort(-1) < masked
    return Batch(
        views={"global": torch.randn(1, count, 3, 32, 32)}, masks={"global": mask}, index_B=torch.arange(count)
    )


def test_defaults_are_the_papers():
    cfg = MAEConfig()
    assert (cfg.mask_ratio, cfg.normalise_targets) == (0.75, True)
    assert (cfg.decoder_width, cfg.decoder_depth, cfg.decoder_heads) == (512, 8, 16)
    (view,) = MAE.views(cfg, 224)
    assert view.crop.scale == (0.2, 1.0) and view.look.flip == 0.5 and view.look.jitter == 0.0
    (mask,) = MAE.masks(cfg, 224, 16)
    assert mask.grid == (14, 14) and mask.ratio == 0.75


def test_the_encoder_sees_only_visible_patches(method):
    batch = batch_of()
    image, mask = batch.views["global"][0], batch.masks["global"][0]
    changed = image.clone()
    for b in range(4):
        for n in mask[b].nonzero().flatten().tolist():
            y, x = divmod(n, 4)
            changed[b, :, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = 99.0
    before, features = method.predict(image, mask)
    torch.testing.assert_close(method.predict(changed, mask)[0], before)
    assert features.patches_BND.shape[1] == 4


def test_visible_patches_carry_no_loss(method):
    batch = batch_of()
    pred, _ = method.predict(batch.views["global"][0], batch.masks["global"][0])
    pred.retain_grad()
    from imprint.losses.reconstruction import masked_patch_mse

    masked_patch_mse(pred, torch.randn_like(pred), batch.masks["global"][0]).backward()
    per_patch = pred.grad.abs().sum(-1)
    assert (per_patch[~batch.masks["global"][0]] == 0).all() and (per_patch[batch.masks["global"][0]] > 0).all()


def test_all_trainable_parameters_learn_and_positions_do_not(method):
    method(batch_of(), T).loss.backward()
    # The norm of the decoder's first input and every block get a gradient; the fixed positions are no parameters.
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for n, p in method.named_parameters() if n.endswith("pos_embed"))


def test_reconstruction_keeps_what_was_visible(method):
    batch = batch_of()
    pictures = method.reconstruct(batch, T)
    assert set(pictures) == {"image", "visible", "reconstruction"}
    mask = batch.masks["global"][0].view(4, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    keep = ~mask.expand(-1, 3, -1, -1)
    torch.testing.assert_close(pictures["reconstruction"][keep], pictures["image"][keep])
    assert pictures["visible"][~keep].abs().max() == 0
    assert pictures["reconstruction"].shape == (4, 3, 32, 32)


def test_a_cnn_is_refused_by_name():
    encoder = build_encoder("resnet18", image_size=32)
    with pytest.raises(ConfigError, match="simclr"):
        MAE(MAEConfig(), encoder)
