"""Norms over groups against separate norms, and the shuffle against its way back."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.dist.sync_batchnorm import synchronise
from imprint.nn.branch import Branch
from imprint.nn.split_norm import (
    BatchShuffle,
    SplitBatchNorm,
    encode_keys,
    has_split_norms,
    local_groups,
    split_norms_,
)


@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 4, 4)], ids=["1d", "2d"])
def test_each_group_is_normalised_by_itself(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain = kind(5)
    nn.init.normal_(plain.weight)
    split = SplitBatchNorm(copy.deepcopy(plain), 3)
    x = (torch.randn(shape) * torch.arange(1, 13.0).view(-1, *[1] * (len(shape) - 1))).requires_grad_()
    twins = [copy.deepcopy(plain) for _ in range(3)]
    expected = torch.cat([twin(part) for twin, part in zip(twins, x.chunk(3), strict=True)])
    weight = torch.randn(shape)
    wanted = torch.autograd.grad((expected * weight).sum(), x)[0]
    out = split(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(torch.autograd.grad((out * weight).sum(), x)[0], wanted)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(twin, name) for twin in twins]).mean(0)
        torch.testing.assert_close(getattr(split, name), mean)
    assert split.num_batches_tracked.item() == 1
    plain.load_state_dict(split.state_dict())  # the same names
    torch.testing.assert_close(split.eval()(x), plain.eval()(x))


def test_channels_last_and_low_precision_stay_as_they_are() -> None:
    norm = SplitBatchNorm(nn.BatchNorm2d(4), 2)
    x = torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last)
    assert norm(x).is_contiguous(memory_format=torch.channels_last)
    assert norm(x.bfloat16()).dtype == torch.bfloat16 and norm.running_mean.dtype == torch.float32


def test_takes_over_the_fused_activation_of_timm() -> None:
    importlib.import_module("imprint.backbones.torchvision_compat")
    from timm.layers import BatchNormAct2d

    net = nn.Sequential(BatchNormAct2d(3))
    x = torch.randn(4, 3, 2, 2)
    expected = torch.cat([copy.deepcopy(net)(part) for part in x.chunk(2)])
    torch.testing.assert_close(split_norms_(net, 2)(x), expected)
    assert expected.min() >= 0


@pytest.mark.parametrize("name", ["resnet18", "regnety_002"])
def test_encoders_keep_their_names_and_the_trainer_leaves_them(name: str) -> None:
    encoder = build_encoder(name, image_size=32)
    names = list(encoder.state_dict())
    assert split_norms_(encoder, 1) is encoder and not has_split_norms(encoder)
    split_norms_(encoder, 2)
    assert has_split_norms(encoder) and list(encoder.state_dict()) == names
    before = {id(m) for m in encoder.modules() if isinstance(m, SplitBatchNorm)}
    synchronise(encoder, torch.device("cpu"))
    split_norms_(encoder, 2)
    assert {id(m) for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)} == before


def test_groups_that_do_not_fit_are_refused() -> None:
    assert (local_groups(8, 32, 1), local_groups(8, 32, 4)) == (8, 2)
    with pytest.raises(ConfigError, match="multiple of 3"):
        local_groups(8, 32, 3)
    with pytest.raises(ConfigError, match="one of 1, 2, 3, 4, 6, or"):
        local_groups(8, 12, 1)
    with pytest.raises(ConfigError, match="two or more"):
        SplitBatchNorm(nn.BatchNorm1d(3), 4)(torch.randn(4, 3))


def test_shuffle_is_undone_and_depends_on_the_step_alone() -> None:
    x = torch.arange(24.0).view(12, 2)
    order = BatchShuffle(12, 5, device=x.device)
    shuffled = order.shuffled(x)
    assert not torch.equal(shuffled, x) and torch.equal(order.restored(shuffled), x)
    assert torch.equal(BatchShuffle(12, 5, device=x.device).shuffled(x), shuffled)
    assert not torch.equal(BatchShuffle(12, 6, device=x.device).shuffled(x), shuffled)


def test_keys_come_back_in_order_but_from_other_groups() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18", image_size=32, stem="cifar", arch={"layers": [1] * 4, "channels": [8] * 4})
    branch = split_norms_(Branch(encoder, nn.Linear(8, 4)), 2)
    views = torch.randn(1, 8, 3, 32, 32)
    straight, _ = encode_keys(branch, views, 0, shuffle=False)
    torch.testing.assert_close(straight, branch(views)[0].detach())
    mixed, everyone = encode_keys(branch, views, 0)
    assert torch.equal(mixed, everyone) and not mixed.requires_grad
    assert (mixed - straight).abs().max() > 1e-3  # other statistics
    branch.eval()
    torch.testing.assert_close(encode_keys(branch, views, 0)[0], branch(views)[0].detach())
