import dataclasses

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError, DataError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.methods.colorization import Colorization, ColorizationConfig
from imprint.ops.lab import rgb_to_lab
from imprint.recipes.book import recipe

T = Progress(4, 10, 5)
NORMALISE = Normalise()


def make(name=None, image_size=32, options=None, **changes):
    torch.manual_seed(0)
    config = recipe("colorization/debug")
    arch = {} if name else {"arch": config.encoder.arch, "stem": "cifar"}
    encoder = build_encoder(name or config.encoder.name, image_size=image_size, **(options or arch))
    return Colorization(dataclasses.replace(config.method, **changes), encoder)


def images_of(count=4, size=32, seed=0):
    """Normalised images with smooth colours."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, size // 8, size // 8), dtype=np.uint8))
    return NORMALISE(coarse.repeat_interleave(8, 2).repeat_interleave(8, 3))


def batch_of(images):
    return Batch(views={"global": images[None]}, index_B=torch.arange(len(images)))


def grey_of(images):
    return NORMALISE((images * 0).round().to(torch.uint8) + 90)


def test_defaults_are_the_papers():
    cfg = ColorizationConfig()
    assert (cfg.grid, cfg.nearest, cfg.sigma, cfg.uniform, cfg.temperature) == (10, 5, 5, 0.5, 0.38)
    assert (cfg.reduction, cfg.width, cfg.grey_threshold) == (4, 256, 5)
    assert make().classifier.out_features == 313
    paper = recipe("colorization/paper")
    assert paper.encoder.image_size == 176 and paper.batch_size == 40 and paper.optim.betas == (0.9, 0.99)
    rate = paper.optim.lr.schedule(40)
    rates = [rate(Progress(step, 450_000, 32_000)) for step in (0, 199_999, 200_001, 375_001)]
    np.testing.assert_allclose(rates, [3e-5, 3e-5, 3e-5 / 10**0.5, 3e-6])


def test_the_encoder_sees_lightness_only():
    method, images = make(), images_of()
    seen = []
    method.backbone.model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method(batch_of(images), T)
    assert torch.equal(seen[0][:, 0], seen[0][:, 1]) and torch.equal(seen[0][:, 0], seen[0][:, 2])
    lightness = rgb_to_lab(NORMALISE.undo(images))[:, 0]
    shown = seen[0][:, 0] * method.std_C11.mean() + method.mean_C11.mean()
    torch.testing.assert_close(shown * 100, lightness, rtol=1e-3, atol=1e-2)


def test_the_loss_is_the_equation_with_a_dense_table():
    method, images = make(), images_of()
    method.fit(images_of(16, seed=1))
    with torch.no_grad():
        loss = method(batch_of(images), T).loss
        logits = method.predict(rgb_to_lab(NORMALISE.undo(images))[:, :1])  # batch statistics again: same batch
    ab = rgb_to_lab(NORMALISE.undo(images))[:, 1:, 2::4, 2::4].permute(0, 2, 3, 1).reshape(-1, 2)
    distance = torch.cdist(ab, method.centres_Q2)
    nearest = distance.topk(5, largest=False)
    share = torch.exp(-nearest.values.square() / 50)
    targets = torch.zeros(len(ab), 313).scatter_(1, nearest.indices, share / share.sum(1, keepdim=True))
    boost = method.boost_Q[targets.argmax(1)]
    log_p = torch.log_softmax(logits.permute(0, 2, 3, 1).flatten(0, 2), 1)
    torch.testing.assert_close(loss, -(boost * (targets * log_p).sum(1)).mean(), rtol=1e-3, atol=1e-4)


def test_weights_come_from_the_users_images():
    method = make()
    assert (method.boost_Q == 1).all()
    red = NORMALISE(torch.tensor([200, 30, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(8, 3, 32, 32).contiguous())
    blue = NORMALISE(torch.tensor([30, 30, 200], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32).contiguous())
    method.fit(torch.cat([red, blue]))
    place = {}
    for name, image in (("red", red), ("blue", blue)):
        ab = rgb_to_lab(NORMALISE.undo(image[:1]))[0, 1:, 0, 0]
        place[name] = int((method.centres_Q2 - ab).square().sum(1).argmin())
    weights = method.boost_Q
    grey = int(method.centres_Q2.square().sum(1).argmin())
    assert weights[place["red"]] < weights[place["blue"]] < weights[grey]
    # p~ is smooth, but only red and its neighbours, blue and its have mass: the weights' mean under it is 1.
    assert weights[grey] > 20 and weights.min() < 1


def test_grey_images_have_no_weight_and_grey_sources_are_refused():
    method, images = make(), images_of()
    grey = grey_of(images)
    assert method(batch_of(grey), T).loss == 0
    with pytest.raises(DataError, match="the 4 images that it looked at are grey"):
        method.fit(grey)
    mixed = method._colourful(method._targets(rgb_to_lab(NORMALISE.undo(torch.cat([grey[:1], images[:1]])))))
    assert mixed.tolist() == [False, True]


def test_everything_learns():
    method = make()
    method.fit(images_of(8))
    method(batch_of(images_of()), T).loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert method.encoder is method.backbone
    stem = method.backbone.model.conv1.weight
    torch.testing.assert_close(stem.grad[:, 0], stem.grad[:, 2], rtol=1e-3, atol=1e-6)  # it stays even
    assert torch.equal(stem[:, 0], stem[:, 2])
    free = make(even_stem=False).backbone.model.conv1.weight
    assert not torch.equal(free[:, 0], free[:, 2])


def test_pictures_keep_the_lightness():
    method, images = make(), images_of()
    pictures = method.eval().reconstruct(batch_of(images), T)
    assert list(pictures) == ["image", "visible", "reconstruction"]
    lab = {k: rgb_to_lab(NORMALISE.undo(v)) for k, v in pictures.items()}
    assert lab["visible"][:, 1:].abs().max() < 0.1
    torch.testing.assert_close(lab["visible"][:, 0], lab["image"][:, 0], rtol=0, atol=0.1)
    assert lab["reconstruction"].shape == images.shape


def test_a_perfect_prediction_gives_the_colours_back():
    method = make(reduction=1).eval()
    images = images_of()
    lab = rgb_to_lab(NORMALISE.undo(images))
    logits = torch.cdist(lab[:, 1:].permute(0, 2, 3, 1).flatten(1, 2), method.centres_Q2).square() / -50
    method.predict = lambda _: logits.transpose(1, 2).unflatten(2, (32, 32))
    shown = NORMALISE.undo(method.reconstruct(batch_of(images), T)["reconstruction"])
    assert (rgb_to_lab(shown) - lab).abs().mean() < 2


def test_other_normalisations_are_undone():
    method, images = make(), images_of()
    with torch.no_grad():
        usual = method(batch_of(images), T).loss
        other = Normalise((0.5, 0.4, 0.3), (0.5, 0.3, 0.2))
        method.normalised_by(other)
        pixels = (NORMALISE.undo(images) * 255).round().to(torch.uint8)
        method._to_input = Colorization._to_input.__get__(make())  # the same numbers to the encoder
        torch.testing.assert_close(method(batch_of(other(pixels)), T).loss, usual, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("vit_tiny_patch16_224", 32, {"patch_size": 8}),
        ("swin_tiny_patch4_window7_224", 56, {"arch": {"depths": (1, 1, 1, 1), "window_size": 7}}),
        ("convnext_atto", 32, {}),
    ],
)
def test_any_encoder_serves(name, size, options):
    method = make(name, size, options)
    out = method(batch_of(images_of(2, size)), T)
    out.loss.backward()
    assert method.eval().reconstruct(batch_of(images_of(2, size)), T)["reconstruction"].shape == (2, 3, size, size)
    assert method.encoder(images_of(2, size)).pooled_BD.shape == (2, method.encoder.embed_dim)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="1 input channels"):
        make("resnet18", 32, {"channels": 1})
    with pytest.raises(ConfigError, match="do not divide an image of 34"):
        Colorization.views(ColorizationConfig(), 34)
    assert Colorization.dangers(ColorizationConfig()) == ()
    assert "fade to the common greys" in Colorization.dangers(ColorizationConfig(uniform=1.0))[0]
