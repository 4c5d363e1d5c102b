import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress, Steps
from imprint.core.schedules import constant
from imprint.data.batch import Batch
from imprint.methods.swav import SwAV, SwAVConfig
from imprint.ops.sinkhorn import sinkhorn
from imprint.recipes.book import recipe
from imprint.train.config import LR, OptimConfig
from imprint.train.lars import LARS
from imprint.train.optim import build_optimizer, set_rates

LATE = Progress(10, 20, 5)


def make(**changes):
    torch.manual_seed(0)
    config = recipe("swav/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, stem="cifar", arch=config.encoder.arch)
    return SwAV(dataclasses.replace(config.method, **changes), encoder)


@pytest.fixture
def method():
    return make()


def batch_of(count=8, local=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = {"global": torch.randn(2, count, 3, 32, 32, generator=generator)}
    if local:
        views["local"] = torch.randn(local, count, 3, 16, 16, generator=generator)
    return Batch(views=views, index_B=torch.arange(count))


def features(method, batch):
    """Return unit features and scores of all crops, without moving anything."""
    state = {k: v.clone() for k, v in method.state_dict().items()}
    with torch.no_grad():
        z = F.normalize(method.branch(*(batch.views[k] for k in ("global", "local") if k in batch.views)), dim=-1)
    method.load_state_dict(state)
    return z, z @ method.prototypes.weight.T


def published_loss(scores, codes, tau):
    """The public code's loops over assigned and other crops."""
    total = 0.0
    for i, q in enumerate(codes):
        others = [v for v in range(len(scores)) if v != i]
        total += sum(-(q * F.log_softmax(scores[v] / tau, -1)).sum(-1).mean() for v in others) / len(others)
    return total / len(codes)


def test_defaults_are_the_papers():
    cfg = SwAVConfig()
    assert (cfg.hidden, cfg.projection, cfg.prototypes) == (2048, 128, 3000)
    assert (cfg.temperature, cfg.epsilon, cfg.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert (cfg.queue, cfg.queue_from, cfg.freeze_prototypes) == (0, Epochs(15), Epochs(1))
    views = {v.name: v for v in SwAV.views(cfg, 224)}
    assert (views["global"].count, views["global"].crop.size, views["global"].crop.scale) == (2, 224, (0.14, 1.0))
    assert (views["local"].count, views["local"].crop.size, views["local"].crop.scale) == (6, 96, (0.05, 0.14))
    for view in views.values():
        look = view.look_of(0)
        assert (look.flip, look.brightness, look.hue, look.jitter, look.grey, look.blur) == (
            0.5,
            0.8,
            0.2,
            0.8,
            0.2,
            0.5,
        )


def test_paper_recipes_follow_the_public_scripts():
    big, small = recipe("swav/paper"), recipe("swav/paper_200")
    lr = big.optim.lr.schedule(4096)
    clock = Progress(0, 800 * 312, 312)
    assert (lr(clock), lr(clock.at(10 * 312 - 1)), lr(clock.at(10 * 312))) == pytest.approx((0.3, 4.8, 4.8))
    assert lr(clock.at(800 * 312)) == pytest.approx(0.0048)
    lr = small.optim.lr.schedule(256)
    assert (lr(clock), lr(clock.at(800 * 312))) == pytest.approx((0.6, 0.0006))
    assert (small.batch_size, small.method.queue, big.method.queue) == (256, 3840, 0)
    assert big.encoder.arch.zero_init_last is False
    imagenet = Progress(0, 10**6, 1_281_167 // 256)
    assert abs(imagenet.steps(small.method.freeze_prototypes) - 5005) <= 1


def test_larc_adapts_and_decays_everything(method):
    config = recipe("swav/paper").optim
    optimizer = build_optimizer(method.param_groups(), config, torch.device("cpu"))
    assert isinstance(optimizer, LARS) and config.lars == "larc"
    assert all(group["adapt"] and group["decay"] for group in optimizer.param_groups)


@pytest.mark.parametrize("local", [0, 2, 5])
def test_loss_is_that_of_the_public_loops(local):
    method = make(queue=0)
    batch = batch_of(local=local)
    _, scores = features(method, batch)
    codes = sinkhorn(scores[:2], 0.05, 3)
    loss = method(batch, LATE).loss
    torch.testing.assert_close(loss, published_loss(scores, codes, 0.1), rtol=1e-5, atol=1e-5)


def test_queue_is_filled_then_used_and_is_the_one_of_before_the_batch(method):
    assert method.cfg.queue == 32
    method(batch_of(), Progress(0, 20, 5))
    assert method.queue.filled == 0, "before queue_from nothing is kept"
    seen = []
    for step in range(1, 7):
        batch = batch_of(seed=step)
        z, scores = features(method, batch)
        own = scores[:2]
        if len(seen) == 4:  # 32 rows: full
            past = torch.cat(seen[::-1], dim=1)  # newest first
            torch.testing.assert_close(method.queue.features, past)
            expected = sinkhorn(torch.cat([past @ method.prototypes.weight.T, own], dim=1), 0.05, 3)[:, -8:]
            assert (expected - sinkhorn(own, 0.05, 3)).abs().max() > 1e-2, "the queue matters"
        else:
            expected = sinkhorn(own, 0.05, 3)
        loss = method(batch, Progress(step, 20, 5)).loss
        torch.testing.assert_close(loss, published_loss(scores, expected, 0.1), rtol=1e-4, atol=1e-4)
        seen = [*seen, z[:2]][-4:]


def test_queue_does_not_move_in_evaluation(method):
    method.eval()
    method(batch_of(), LATE)
    assert method.queue.filled == 0 and method.queue.features.abs().max() == 0


def test_a_queue_shorter_than_the_batch_is_refused():
    with pytest.raises(ConfigError, match="queue of 4 features cannot take a batch of 8"):
        make(queue=4).check_batch(8)


def test_no_gradient_reaches_the_codes(method):
    loss = method(batch_of(), LATE).loss
    loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    # The same batch with codes as constants has the same gradient.
    grad = method.prototypes.weight.grad.clone()
    other = make()
    batch = batch_of()
    z = F.normalize(other.branch(batch.views["global"], batch.views["local"]), dim=-1)
    scores = z @ other.prototypes.weight.T
    published_loss(scores, sinkhorn(scores[:2], 0.05, 3), 0.1).backward()
    torch.testing.assert_close(grad, other.prototypes.weight.grad, rtol=1e-4, atol=1e-6)


def test_prototypes_are_frozen_at_first_and_return_to_the_sphere(method):
    length = method.prototypes.weight.norm(dim=1)
    torch.testing.assert_close(length, torch.ones_like(length))
    assert method.cfg.freeze_prototypes == Steps(2)
    method(batch_of(), LATE).loss.backward()
    method.before_optimizer_step(LATE.at(2))
    assert method.prototypes.weight.grad is not None
    method.before_optimizer_step(LATE.at(1))
    assert method.prototypes.weight.grad is None
    with torch.no_grad():
        method.prototypes.weight.mul_(3.0)
    method.after_optimizer_step(LATE)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones_like(length))


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_frozen_prototypes_stand_still_and_thaw_under_every_optimizer(method, name):
    config = OptimConfig(name=name, lars="larc", adapt_all=True, lr=LR(base=0.1), weight_decay=constant(0.1))
    optimizer = build_optimizer(method.param_groups(), config, torch.device("cpu"))
    moved = []
    for step in range(4):
        t = Progress(step, 20, 5)
        set_rates(optimizer, 0.1, 0.1, 0.1)
        optimizer.zero_grad()
        before = method.prototypes.weight.detach().clone()
        method(batch_of(seed=step), t).loss.backward()
        method.before_optimizer_step(t)
        optimizer.step()
        method.after_optimizer_step(t)
        moved.append(float((method.prototypes.weight.detach() - before).abs().max()))
    assert max(moved[:2]) < 1e-6 < 1e-5 < min(moved[2:])


def test_metrics_are_in_their_ranges(method):
    metrics = method(batch_of(), LATE).metrics
    assert 0 <= metrics["swav/code_entropy"] <= math.log(method.cfg.prototypes)
    assert 0 < metrics["swav/prototypes_used"] <= 1
    assert {"embedding/std", "embedding/positive_cosine", "embedding/correlation"} <= metrics.keys()
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_dangers_name_the_missing_balance():
    assert SwAV.dangers(SwAVConfig()) == ()
    (text,) = SwAV.dangers(SwAVConfig(sinkhorn_iterations=0))
    assert "sinkhorn_iterations" in text and "--method.sinkhorn-iterations 3" in text


def test_bfloat16_costs_rounding_only(method):
    batch = batch_of()
    exact = make()(batch, Progress(0, 20, 5)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(batch, Progress(0, 20, 5)).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
