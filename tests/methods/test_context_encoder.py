import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.dist.world import World
from imprint.methods.context_encoder import ContextEncoder, ContextEncoderConfig
from imprint.recipes.book import recipe
from imprint.train.optim import build_optimizer
from imprint.train.precision import choose_precision
from imprint.train.step import Stepper

T = Progress(4, 10, 5)


def encoder_of(name="resnet18", **changes):
    config = recipe("context_encoder/debug").encoder
    if name == "resnet18":
        return build_encoder(name, image_size=32, stem=config.stem, arch=config.arch, **changes)
    return build_encoder(name, image_size=32, patch_size=8, arch={"embed_dim": 32, "depth": 1, "num_heads": 2})


def make(encoder=None, **changes):
    torch.manual_seed(0)
    return ContextEncoder(
        dataclasses.replace(recipe("context_encoder/debug").method, **changes), encoder or encoder_of()
    )


def batch_of(count=6):
    torch.manual_seed(1)
    return Batch(views={"global": torch.randn(1, count, 3, 32, 32)}, index_B=torch.arange(count) + 40)


def test_defaults_are_the_papers_and_the_public_codes():
    cfg = ContextEncoderConfig()
    assert (cfg.reconstruction_weight, cfg.adversarial_weight, cfg.generator_rate) == (0.999, 0.001, 10.0)
    assert (cfg.overlap_weight, cfg.bottleneck, cfg.width, cfg.discriminator_width) == (10.0, 4000, 64, 64)
    assert round(128 * cfg.overlap) == 4 and round(227 * cfg.overlap) == 7
    paper = recipe("context_encoder/paper")
    assert (paper.optim.name, paper.optim.betas[0], paper.optim.lr.peak(64)) == ("adam", 0.5, 2e-4)


def test_the_centre_is_hidden_but_for_the_band_that_is_weighed_ten_times():
    method = make(region="centre")
    hidden = method.hidden(torch.arange(2), T)
    assert hidden.shape == (1, 1, 32, 32)
    assert int(hidden.sum()) == 14 * 14 and bool(hidden[..., 9:23, 9:23].all())
    weight = method.weight(hidden)
    assert weight.shape == (1, 1, 16, 16)
    assert bool((weight[..., 1:15, 1:15] == 1).all()) and float(weight.sum()) == 196 + 10 * (256 - 196)


def test_the_encoder_sees_the_mean_colour_in_the_hole_and_nothing_behind_it():
    method, batch = make(region="centre").eval(), batch_of()
    images = batch.views["global"][0]
    method.fit(images)
    hidden = method.hidden(batch.index_B, T)
    covered = method.covered(images, hidden)
    torch.testing.assert_close(covered[0, :, 16, 16], images.mean((0, 2, 3)))
    assert torch.equal(covered[..., :9, :], images[..., :9, :])
    other = images.clone()
    other[..., 9:23, 9:23] = 7.0
    assert torch.equal(method.paint(images, hidden), method.paint(other, hidden))
    other[..., 0, 0] = 7.0
    assert not torch.equal(method.paint(images, hidden), method.paint(other, hidden))


@pytest.mark.parametrize("region", ["centre", "random", "blocks"])
def test_the_loss_is_the_weighted_sum_and_the_discriminator_sees_what_is_predicted(region):
    method, batch = make(region=region, context_weight=0.0), batch_of()
    seen = []
    method.discriminator.register_forward_hook(lambda _m, x, _y: seen.append(x[0].detach()))
    method(batch, T, "discriminator")
    out = method(batch, T, "generator")
    torch.testing.assert_close(
        out.loss, 0.999 * out.metrics["context_encoder/l2"] + 0.001 * out.metrics["context_encoder/fooling"]
    )
    side = 16 if region == "centre" else 32
    assert [tuple(x.shape) for x in seen] == [(6, 3, side, side)] * 3
    assert max(float(x.abs().max()) for x in seen) <= 1
    torch.testing.assert_close(seen[1], seen[2])  # both objectives of a step have the same holes
    hidden = method.hidden(batch.index_B, T)
    l2 = ((seen[2] - seen[0]).square() * method.weight(hidden)).mean()
    torch.testing.assert_close(out.metrics["context_encoder/l2"], l2)


def test_holes_change_with_steps_and_belong_to_samples():
    method, index = make(region="random"), torch.arange(8)
    now = method.hidden(index, T)
    assert torch.equal(method.hidden(index[3:5], T), now[3:5])
    assert not torch.equal(method.hidden(index, T.at(5)), now)


@pytest.mark.parametrize("region", ["centre", "random"])
def test_each_update_moves_its_own_side_and_the_generator_ten_times_as_fast(region):
    config = dataclasses.replace(recipe("context_encoder/debug"), precision="fp32")
    method, batch, world = make(region=region), batch_of(16), World()
    optimizer = build_optimizer(method.param_groups(), config.optim, world.device)
    stepper = Stepper(config, method, optimizer, world, choose_precision("fp32", world.device, None, False))
    states, real = [], optimizer.step

    def step(*args, **kwargs):
        states.append({n: p.detach().clone() for n, p in method.named_parameters()})
        return real(*args, **kwargs)

    optimizer.step = step
    stepper(batch, T)
    ends = {n: p.detach().clone() for n, p in method.named_parameters()}
    first, second = (
        {name.split(".")[0] for name in now if not torch.equal(now[name], then[name])}
        for now, then in ((states[0], states[1]), (states[1], ends))
    )
    assert first == {"discriminator"} and second == {"backbone", "bridge", "decoder"}
    rates = {g["name"].split("/")[0]: g["lr"] for g in optimizer.param_groups}
    assert rates["generator"] == pytest.approx(10 * rates["discriminator"])
    grouped = [n for g in method.param_groups() for n in g.names]
    assert sorted(grouped) == sorted(n for n, _ in method.named_parameters())


def test_painting_stays_in_the_hole():
    method, batch = make(region="blocks").eval(), batch_of()
    images = batch.views["global"][0]
    method.fit(images)
    pictures = method.reconstruct(batch, T)
    hidden = method.hidden(batch.index_B, T).expand_as(images)
    assert torch.equal(pictures["reconstruction"][~hidden], images[~hidden])
    painted = method.pixels.from_unit(method.paint(images, method.hidden(batch.index_B, T)))
    torch.testing.assert_close(pictures["reconstruction"][hidden], painted[hidden])
    centre = make(region="centre").eval().reconstruct(batch, T)
    assert torch.equal(centre["reconstruction"][..., :9], images[..., :9])
    assert not torch.equal(centre["reconstruction"][..., 9:23, 9:23], images[..., 9:23, 9:23])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
@pytest.mark.parametrize("bridge", ["channelwise", "dense"])
def test_any_encoder_with_a_map_serves(name, bridge):
    method = make(encoder_of(name), region="centre", bridge=bridge, bottleneck=10)
    method(batch_of(), T).loss.backward()
    idle = [n for n, p in method.named_parameters() if p.grad is None and not n.startswith("discriminator.")]
    assert [n for n in idle if "fc_norm" not in n] in ([], ["backbone.model.cls_token"][:0])
    assert method.encoder is method.backbone


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="hole"):
        make(region="centre", hole=0.0)
    with pytest.raises(ConfigError, match="overlap"):
        make(region="centre", overlap=0.4)
    with pytest.raises(ConfigError, match="at least 2"):
        make().check_batch(1)
