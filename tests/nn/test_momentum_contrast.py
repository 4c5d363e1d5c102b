import pytest
import torch
from torch import nn

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.losses.info_nce import info_nce_queue
from imprint.nn.branch import Branch
from imprint.nn.momentum_contrast import MomentumContrast, contrast_dangers
from imprint.nn.split_norm import SplitBatchNorm, encode_keys

TAU = 0.1


def make(**changes):
    torch.manual_seed(0)
    arch = Arch(layers=(1, 1, 1, 1), channels=(16, 16, 32, 32))
    encoder = build_encoder("resnet18", image_size=32, stem="cifar", arch=arch)
    settings = {"width": 16, "queue": 64, "norm_groups": 2, "shuffle": True} | changes
    return MomentumContrast(Branch(encoder, nn.Linear(encoder.embed_dim, 16)), **settings)


def views_of(count=16, seed=0):
    return torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_loss_is_against_the_queue_of_earlier_batches():
    part = make()
    loss, metrics = part(views_of(), TAU, 3)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)  # nothing to tell the positive from yet
    assert part.queue.filled.item() == part.queue.pointer.item() == 16
    assert metrics["moco/queue_filled"] == 0 and metrics["moco/accuracy"] == 1
    held, views = part.queue.keys.clone(), views_of(seed=1)
    loss, _ = part(views, TAU, 3)
    q, (k, _) = part.query(views[:1])[0], encode_keys(part.key, views[1:], 3)
    torch.testing.assert_close(loss, info_nce_queue(q, k, held[:16], TAU))
    torch.testing.assert_close(part.queue.keys[16:32], torch.nn.functional.normalize(k, dim=1))


def test_evaluation_mode_leaves_the_queue():
    part = make().eval()
    part(views_of(), TAU, 0)
    assert part.queue.filled.item() == 0


def test_batches_that_do_not_fit_are_refused():
    part = make()
    part.check_batch(16)
    with pytest.raises(ConfigError, match="choose a queue of 48 or 72 keys"):
        part.check_batch(24)
    with pytest.raises(ConfigError, match="batch-norm groups"):
        part.check_batch(2)  # one image in each of the two groups


def test_gradient_reaches_all_of_the_query_network_and_nothing_else():
    part = make()
    part(views_of(), TAU, 0)
    part(views_of(seed=1), TAU, 1)[0].backward()
    assert all(p.grad is not None for p in part.query.parameters())
    assert all(p.grad is None and not p.requires_grad for p in part.key.parameters())
    assert part.query.head.weight.grad.norm() > 1e-3


def test_key_network_follows():
    part = make()
    before = part.query.head.weight.detach().clone()
    assert torch.equal(before, part.key.head.weight)
    with torch.no_grad():
        part.query.head.weight.add_(1.0)
    part.follow_(0.75)
    torch.testing.assert_close(part.key.head.weight, before + 0.25)


def test_batch_statistics_are_of_groups_and_shuffled():
    norms = [m for m in make().modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, SplitBatchNorm) and m.groups == 2 for m in norms)
    shuffled, straight = make(), make(shuffle=False)
    shuffled(views_of(), TAU, 0), straight(views_of(), TAU, 0)
    assert (shuffled.queue.keys[:16] - straight.queue.keys[:16]).abs().max() > 1e-3
    assert not any(isinstance(m, SplitBatchNorm) for m in make(norm_groups=1).modules())


def test_dangers_name_what_is_off():
    assert contrast_dangers(0.999, 8, True) == ()
    (slow,) = contrast_dangers(0.0, 8, True)
    assert "momentum starts at 0" in slow and "--method.momentum.start" in slow
    (groups,) = contrast_dangers(0.999, 1, True)
    assert "--method.norm-groups 8" in groups
    (order,) = contrast_dangers(0.999, 8, False)
    assert "--method.shuffle True" in order
