import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.catalog import method_class
from imprint.methods.rcdm import RCDM, RCDMConfig, interpolated
from imprint.recipes.book import recipe, stages_of

T = Progress(4, 10, 5)


def encoder_of(seed=0, **changes):
    torch.manual_seed(seed)
    config = recipe("rcdm/debug")
    return build_encoder("resnet18", image_size=32, stem="cifar", arch=config.encoder.arch, **changes)


def make(**changes):
    method = RCDM(dataclasses.replace(recipe("rcdm/debug").method, **changes), encoder_of())
    wake(method)
    return method.train()


def wake(method):
    """Give the layers that start at zero something to say."""
    torch.manual_seed(1)
    with torch.no_grad():
        for net in (method.unet, method.average):
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


def batch_of(count=4, first=0):
    images = torch.randn(1, 40, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return Batch(views={"global": images[:, first : first + count]}, index_B=torch.arange(first, first + count))


def test_defaults_are_the_papers():
    cfg = RCDMConfig()
    assert (cfg.size, cfg.width, cfg.multipliers, cfg.blocks) == (128, 256, (1, 1, 2, 3, 4), 2)
    assert (cfg.attention, cfg.schedule, cfg.levels, cfg.momentum) == ((32, 16, 8), "linear", 1000, 0.9999)
    assert cfg.learned_variance and cfg.residual_resampling and cfg.conditioning == "norm"
    paper = recipe("rcdm/paper")
    assert paper.method.size == 128 and paper.optim.lr.peak(256) == 1e-4 and paper.optim.lr.shape == "constant"
    assert [s.method.condition for s in stages_of("rcdm/small_projector")[1:]] == ["projector"]


@pytest.mark.parametrize(("conditioning", "prediction"), [("norm", "noise"), ("time", "noise"), ("norm", "velocity")])
@pytest.mark.parametrize("learned", [True, False])
def test_the_unet_learns_and_the_encoder_does_not(conditioning, prediction, learned):
    method = make(conditioning=conditioning, prediction=prediction, learned_variance=learned)
    before = {n: v.clone() for n, v in method.encoder.state_dict().items()}
    out = method(batch_of(), T)
    out.loss.backward()
    assert [n for n, p in method.unet.named_parameters() if p.grad is None] == []
    assert all(not p.requires_grad for p in [*method.encoder.parameters(), *method.average.parameters()])
    (group,) = method.param_groups()
    assert {id(p) for p in group.params} == {id(p) for p in method.unet.parameters()}
    assert all(torch.equal(before[n], v) for n, v in method.encoder.state_dict().items())
    assert ("rcdm/bound_bits" in out.metrics) is learned


def test_only_variances_learn_from_the_bound():
    method = make()
    images = batch_of().views["global"][0]
    clean = method.target(images)
    level = torch.tensor([0, 3, 20, 49])
    noised = method.schedule.noised(clean, level, torch.randn_like(clean))
    out = torch.randn(4, 6, *clean.shape[2:], requires_grad=True)
    method._bound(clean, noised, level, out).backward()
    assert out.grad[:, :3].abs().max() == 0 and out.grad[:, 3:].abs().max() > 0


def test_half_a_batch_sees_the_same_noise():
    """The loss of a batch is the mean of those of its halves, wherever they are computed."""
    method = make()
    whole = method(batch_of(8), T).loss
    halves = [method(batch_of(4, first), T).loss for first in (0, 4)]
    torch.testing.assert_close(whole, torch.stack(halves).mean(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(method(batch_of(8), Progress(5, 10, 5)).loss, whole)


def test_levels_and_noise_are_spread():
    method = make()
    level, noise = method._draw(torch.arange(2000), 3, torch.Size((3, 4, 4)))
    counts = torch.bincount(level, minlength=50)
    assert counts.shape == (50,) and counts.min() > 15 and counts.max() < 75
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([level.double(), noise[:, 0, 0, 0].double()]))[0, 1])) < 0.07


@pytest.mark.parametrize("conditioning", ["norm", "time"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_same_noise_gives_the_same_image_and_another_condition_another(conditioning, sampler):
    method = make(conditioning=conditioning, sampler=sampler, steps=4).eval()
    condition = torch.randn(2, method.conditioner.width)
    one = method.sample(condition, torch.tensor([5, 5]))
    assert one.shape == (2, 3, 16, 16) and torch.isfinite(one).all()
    again = method.sample(condition.flip(0), torch.tensor([5, 6]))
    torch.testing.assert_close(again[0], one[1], rtol=1e-3, atol=1e-4)
    assert (again[1] - one[0]).abs().max() > 1e-2
    assert (one[0] - one[1]).abs().max() > 1e-4


def test_samples_come_from_the_averaged_weights():
    method = make(momentum=0.9).eval()
    condition, noise = torch.randn(2, method.conditioner.width), torch.arange(2)
    before = method.sample(condition, noise)
    with torch.no_grad():
        for p in method.unet.parameters():
            p.add_(0.3)
    assert torch.equal(method.sample(condition, noise), before)
    kept = method.average.embed.weight.clone()
    method.after_optimizer_step(T)
    torch.testing.assert_close(method.average.embed.weight, kept + 0.1 * (method.unet.embed.weight - kept))
    assert not torch.equal(method.sample(condition, noise), before)


def test_pixels_are_painted_between_black_and_white():
    method = make()
    images = torch.rand(16, 3, 32, 32) * 3 - 1
    method.fit(images)
    assert method.target(images).abs().amax() < 1
    unit = method.pixels.to_unit(images)
    torch.testing.assert_close(torch.stack([unit.amin(), unit.amax()]), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(method.pixels.from_unit(unit), images)
    assert method.target(images).shape == (16, 3, 16, 16)
    standard = method.conditioner(images)
    torch.testing.assert_close(standard.square().mean(), torch.ones(()), rtol=1e-3, atol=1e-3)


def test_pictures():
    method = make().eval()
    pictures = method.reconstruct(batch_of(), T)
    assert set(pictures) == {"image", "sample 1", "sample 2", "sample 3", "walk from the first to the last"}
    assert {p.shape for p in pictures.values()} == {(4, 3, 16, 16)}
    walk = interpolated(torch.zeros(2), torch.tensor([1.0, 4.0]), 5)
    torch.testing.assert_close(walk[:, 1], torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))


def previous(name):
    config = recipe(f"{name}/debug")
    options = {k: v for k, v in vars(config.encoder).items() if k != "channels"}
    if name == "simclr":  # other widths than the encoder that a run is built with
        options["arch"] = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 48)}
    torch.manual_seed(7)
    method = dataclasses.replace(config.method, projection=20) if name == "simclr" else config.method
    return method_class(name)(method, build_encoder(**options))


@pytest.mark.parametrize("condition", ["backbone", "projector"])
def test_the_encoder_of_a_run_is_taken_over_with_its_projector(condition):
    method, simclr = make(condition=condition), previous("simclr")
    assert (method.lacks() is None) is (condition == "backbone")
    method.inherit(simclr)
    assert method.lacks() is None and method.encoder is simclr.encoder
    width = simclr.encoder.embed_dim if condition == "backbone" else simclr.cfg.projection
    assert method.conditioner.width == width != encoder_of().embed_dim
    images = batch_of().views["global"][0]
    with torch.no_grad():
        pooled = simclr.encoder.eval()(images).pooled_BD
        expected = pooled if condition == "backbone" else simclr.branch.head.eval()(pooled)
    torch.testing.assert_close(method.conditioner(images), expected)
    method(batch_of(), T).loss.backward()
    rebuilt = make(condition=condition)
    rebuilt.inherit(simclr)
    rebuilt.load_state_dict(method.state_dict())
    further = make(condition=condition)
    further.inherit(method)
    assert torch.equal(further.unet.embed.weight, method.unet.embed.weight)
    other = make(condition="backbone" if condition == "projector" else "projector")
    with pytest.raises(ConfigError, match="was told"):
        other.inherit(method)


def test_a_run_without_a_projector_is_refused():
    with pytest.raises(ConfigError, match="no projector"):
        make(condition="projector").inherit(previous("mae"))
    assert "--start" in make(condition="projector").lacks()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t"])
def test_any_encoder_serves(name):
    torch.manual_seed(0)
    options = {"patch_size": 8, "arch": {"depth": 1, "embed_dim": 24, "num_heads": 2}} if "vit" in name else {}
    encoder = build_encoder(name, image_size=32, **options)
    method = RCDM(recipe("rcdm/debug").method, encoder)
    method(batch_of(), T).loss.backward()
    assert method.represent(torch.randn(2, 3, 16, 16)).shape == (2, encoder.embed_dim)


def test_folding_squares_into_channels_keeps_the_size():
    method = make(patch=2).eval()
    assert method.sample(torch.randn(2, method.conditioner.width), torch.arange(2)).shape == (2, 3, 16, 16)


def test_sizes_that_do_not_fit_are_refused():
    for changes, words in (
        ({"size": 64}, "larger --image-size"),
        ({"size": 15}, "halves the sides"),
        ({"width": 6}, "groups do not divide"),
        ({"head_width": 5}, "do not divide"),
        ({"patch": 3}, "do not tile"),
        ({"steps": 51}, "sampling steps"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(**changes)


def test_without_diffusers_the_extra_is_named(monkeypatch):
    import sys

    from imprint.core.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"imprint\[diffusion\]"):
        make()
