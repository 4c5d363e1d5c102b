import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.dvae import DVAE, DVAEConfig
from imprint.recipes.book import recipe

T = Progress(4, 10, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("dvae/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, arch=config.encoder.arch)
    return DVAE(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=4):
    return Batch(views={"global": torch.randn(1, count, 3, 32, 32)}, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = DVAEConfig()
    assert (cfg.vocabulary, cfg.embedding, cfg.width, cfg.blocks) == (8192, 128, 256, 2)
    assert (cfg.likelihood, cfg.margin, cfg.momentum) == ("laplace", 0.1, 0.999)
    assert (cfg.temperature.end, cfg.kl_weight.end) == (1 / 16, 6.6)
    paper = recipe("dvae/paper")
    assert paper.encoder.image_size == 112 and paper.optim.lr.peak(512) == 1e-4


def test_the_bound_weighs_the_divergence_per_pixel_value():
    method = make(kl_weight=dataclasses.replace(DVAEConfig().kl_weight, start=5.0, end=5.0))
    out = method(batch_of(), T)
    # Stride 8 and 3 channels: beta / 192.
    torch.testing.assert_close(out.loss, out.metrics["dvae/misfit"] + 5.0 / 192 * out.metrics["dvae/kl"])


@pytest.mark.parametrize("likelihood", ["laplace", "l2", "l1"])
def test_everything_learns_but_the_average_follows_only(likelihood):
    method = make(likelihood=likelihood)
    method(batch_of(), T).loss.backward()
    named = dict(method.named_parameters())
    assert [n for n, p in named.items() if n.startswith("trained.") and p.grad is None] == []
    assert all(not p.requires_grad for n, p in named.items() if n.startswith("tokenizer."))
    with torch.no_grad():
        for p in method.trained.parameters():
            p.add_(1.0)
    before = method.tokenizer.codebook_KE.clone()
    method.after_optimizer_step(T)
    torch.testing.assert_close(method.tokenizer.codebook_KE, before + 0.1)  # momentum 0.9
    assert method.encoder is method.tokenizer.backbone


def test_the_use_of_codes_is_measured():
    method = make()
    logits = torch.full((2, 16, 32), -9.0)
    logits.view(32, 32).fill_diagonal_(9.0)
    use = method._use(logits)
    assert use["dvae/codes_used"] == 1
    torch.testing.assert_close(use["dvae/perplexity"], torch.tensor(1.0))
    logits[:] = -9.0
    logits[..., 3] = 9.0
    use = method._use(logits)
    torch.testing.assert_close(torch.stack(list(use.values())), torch.tensor([1 / 32, 1 / 32]))


def test_the_range_of_pixels_is_learned_before_the_first_step():
    method = make()
    images = torch.rand(8, 3, 32, 32) * 3 - 1
    method.fit(images)
    for vae in (method.trained, method.tokenizer):
        torch.testing.assert_close(vae.low_C, images.amin((0, 2, 3)))
        torch.testing.assert_close(vae.high_C, images.amax((0, 2, 3)))


def test_pictures_of_soft_and_hard_codes():
    method, batch = make(), batch_of()
    pictures = method.reconstruct(batch, T)
    assert set(pictures) == {"image", "relaxed codes", "reconstruction"}
    assert {p.shape for p in pictures.values()} == {(4, 3, 32, 32)}
    words = method.tokenizer.encode(batch.views["global"][0])
    torch.testing.assert_close(pictures["reconstruction"], method.tokenizer.decode(words, (4, 4)))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_any_encoder_with_a_map_serves(name):
    torch.manual_seed(0)
    options = {"patch_size": 4} if name.startswith("vit") else {"stem": "cifar"}
    method = DVAE(recipe("dvae/debug").method, build_encoder(name, image_size=32, **options))
    assert method.tokenizer.grid_for(32) == ((8, 8) if name.startswith("vit") else (4, 4))
    method(batch_of(2), T).loss.backward()
    assert method.tokenizer.encode(torch.randn(2, 3, 32, 32)).shape[0] == 2


def test_a_patch_that_no_doubling_reaches_is_refused():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=28, patch_size=14)
    with pytest.raises(ConfigError, match="power of two"):
        DVAE(recipe("dvae/debug").method, encoder)


def test_a_run_without_the_divergence_is_warned():
    off = dataclasses.replace(DVAEConfig().kl_weight, end=0.0)
    assert DVAE.dangers(DVAEConfig()) == ()
    assert "few may do all the work" in DVAE.dangers(DVAEConfig(kl_weight=off))[0]
