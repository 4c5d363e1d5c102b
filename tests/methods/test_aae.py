import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.dist.world import World
from imprint.methods.aae import AAE, AAEConfig
from imprint.recipes.book import recipe
from imprint.train.optim import build_optimizer
from imprint.train.precision import choose_precision
from imprint.train.step import Stepper

T = Progress(4, 10, 5)


def make(name="resnet18", **changes):
    torch.manual_seed(0)
    config = recipe("aae/debug")
    if name == "resnet18":
        encoder = build_encoder(name, image_size=32, stem=config.encoder.stem, arch=config.encoder.arch)
    else:
        encoder = build_encoder(name, image_size=32, patch_size=8, arch={"embed_dim": 32, "depth": 1, "num_heads": 2})
    return AAE(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=6):
    torch.manual_seed(1)
    return Batch(views={"global": torch.randn(1, count, 3, 32, 32)}, index_B=torch.arange(count) + 40)


def test_defaults_are_the_papers():
    cfg = AAEConfig()
    assert (cfg.latent, cfg.prior, cfg.prior_scale, cfg.posterior) == (8, "gaussian", 5.0, "deterministic")
    assert (cfg.decoder, cfg.width, cfg.discriminator_width) == ("mlp", 1000, 1000)
    assert recipe("aae/paper").batch_size == 100
    assert recipe("aae/paper_mixture").method.prior == "mixture"
    assert recipe("aae/paper_swiss_roll").method.prior == "swiss_roll"


def test_two_phases_move_what_the_paper_says():
    config = dataclasses.replace(recipe("aae/debug"), precision="fp32")
    method, batch, world = make(), batch_of(16), World()
    optimizer = build_optimizer(method.param_groups(), config.optim, world.device)
    stepper = Stepper(config, method, optimizer, world, choose_precision("fp32", world.device, None, False))
    states, graded, real = [], [], optimizer.step

    def step(*args, **kwargs):
        states.append({n: p.detach().clone() for n, p in method.named_parameters()})
        graded.append({n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None})
        return real(*args, **kwargs)

    optimizer.step = step
    metrics = stepper(batch, T)
    states.append({n: p.detach().clone() for n, p in method.named_parameters()})
    moving = [{"backbone", "code", "decoder"}, {"discriminator"}, {"backbone", "code"}]
    assert graded == moving
    for phase, parts in enumerate(moving):
        now, then = states[phase], states[phase + 1]
        assert {name.split(".")[0] for name in now if not torch.equal(now[name], then[name])} == parts
    assert {"reconstruction_loss", "discriminator_loss", "loss", "aae/mmd"} <= metrics.keys()
    grouped = [n for g in method.param_groups() for n in g.names]
    assert sorted(grouped) == sorted(n for n, _ in method.named_parameters())


def test_a_plain_autoencoder_has_no_pull_towards_the_prior():
    method = make(adversarial_weight=0.0)
    method(batch_of(), T, "generator").loss.backward()
    assert all(not p.grad.any() for p in method.backbone.parameters() if p.grad is not None)
    assert "adversarial_weight is 0" in AAE.dangers(method.cfg)[0] and AAE.dangers(AAEConfig()) == ()


def test_the_discriminator_tells_codes_from_the_prior():
    method, batch = make(prior="swiss_roll"), batch_of()
    seen = []
    method.discriminator.register_forward_hook(lambda _m, x, _y: seen.append(x[0].detach()))
    method.eval()(batch, T, "discriminator")
    real, fake = seen
    assert real.shape == fake.shape == (6, 2)
    torch.testing.assert_close(fake, method.encode(batch.views["global"][0], batch.index_B, 0).detach())
    part = dataclasses.replace(batch, views={"global": batch.views["global"][:, 2:4]}, index_B=batch.index_B[2:4])
    method(part, T, "discriminator")
    torch.testing.assert_close(seen[2], real[2:4])  # whatever else is in the batch
    method(batch, T.at(5), "discriminator")
    assert not torch.equal(seen[4], real)


def test_a_gaussian_posterior_is_drawn_by_sample_and_gives_gradients_to_both_its_parts():
    method, batch = make(posterior="gaussian").eval(), batch_of()
    one = batch.views["global"][0][:1]
    with torch.no_grad():
        mean, log_variance = method.code(method.backbone(one).pooled_BD).chunk(2, 1)
        draws = method.encode(one.expand(500, -1, -1, -1), torch.arange(500), 3)
    torch.testing.assert_close(draws.mean(0), mean[0], atol=0.2, rtol=0)
    torch.testing.assert_close(draws.std(0), (0.5 * log_variance[0]).exp(), atol=0.1, rtol=0.1)
    method(batch, T, "reconstruction").loss.backward()
    assert (method.code.weight.grad.abs().sum(1) > 0).all()


def test_the_latest_codes_are_kept_newest_first():
    method = make(kept_codes=8)
    method(batch_of(6), T, "generator")
    assert int(method.kept.filled) == 6
    method.eval()
    method(batch_of(6), T, "generator")
    codes = method.encode(batch_of(6).views["global"][0], batch_of(6).index_B, 0)
    torch.testing.assert_close(method.kept.features[0, :6], codes)
    method(batch_of(12), T, "generator")  # more than there is room for
    assert int(method.kept.filled) == 20


def test_pictures():
    method, batch = make(), batch_of()
    pictures = method.eval().reconstruct(batch, T)
    assert set(pictures) == {"image", "reconstruction", "samples of the prior, decoded", "latent plane"}
    plane = pictures.pop("latent plane")
    assert plane.shape == (6, 3, 112, 112) and set(plane.unique().tolist()) == {-3.0, 0.0, 3.0}
    black = (plane == -3).all(1).flatten(1).sum(1)
    assert (black > 0).all() and (black <= 49).all()  # one code each
    assert {p.shape for p in pictures.values()} == {(6, 3, 32, 32)}
    torch.testing.assert_close(
        pictures["samples of the prior, decoded"],
        method.eval().reconstruct(batch, T.at(7))["samples of the prior, decoded"],
    )


@pytest.mark.parametrize("latent", [1, 5])
def test_the_plane_of_codes_with_other_dimensions(latent):
    method = make(latent=latent)
    assert method.plane(torch.randn(3, latent)).shape == (3, 3, 112, 112)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
@pytest.mark.parametrize("decoder", ["mlp", "convolutions"])
def test_any_encoder_and_either_decoder(name, decoder):
    method = make(name, decoder=decoder, width=8)
    loss = sum(method(batch_of(), T, objective).loss for objective in method.objectives)
    loss.backward()
    assert method.decoder(torch.randn(2, 2)).shape == (2, 3, 32, 32)
    assert all(p.grad is not None for p in method.decoder.parameters())
    assert method.encoder is method.backbone


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="latent 2"):
        make(prior="swiss_roll", latent=3)
    with pytest.raises(ConfigError, match="prior_scale"):
        make(prior_scale=0.0)
