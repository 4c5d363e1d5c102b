from __future__ import annotations

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.data.batch import Batch
from imprint.train.precision import (
    choose_precision,
    gains_from_channels_last,
    steady_convolutions,
    to_channels_last,
)

CPU = torch.device("cpu")


def test_auto_on_a_cpu_is_bf16_only_where_the_cpu_computes_in_it(monkeypatch):
    for abilities, name in (({"avx2": True}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=abilities: found)
        assert choose_precision("auto", CPU, None, convolutional=True).name == name


def test_channels_last_is_for_cnns_alone():
    assert choose_precision("auto", CPU, None, convolutional=True).channels_last
    assert not choose_precision("auto", CPU, None, convolutional=False).channels_last
    assert not choose_precision("auto", CPU, False, convolutional=True).channels_last
    assert choose_precision("fp32", CPU, None, True).scaler is None


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ConfigError, match="made for GPUs"):
        choose_precision("fp16", CPU, None, True)


def test_bf16_autocast_reaches_matmuls():
    with choose_precision("bf16", CPU, None, False).autocast():
        assert torch.nn.Linear(4, 4)(torch.randn(2, 4)).dtype == torch.bfloat16


def test_views_are_laid_out_channels_last_without_changing_a_value():
    images = torch.randint(0, 255, (2, 3, 3, 8, 8), dtype=torch.uint8)
    batch = Batch(views={"global": images}, index_B=torch.arange(3))
    laid = choose_precision("fp32", CPU, True, True).laid_out(batch).views["global"]
    assert torch.equal(laid, images)
    assert laid[0].is_contiguous(memory_format=torch.channels_last)
    assert laid.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    conv = torch.nn.Conv2d(3, 4, 3)
    to_channels_last(conv)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv(laid[0].float()).is_contiguous(memory_format=torch.channels_last)


def test_channels_last_is_kept_from_networks_that_onednn_cannot_train():
    wide = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 32, 1, stride=2))
    narrow = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 16, 1, stride=2))
    patches = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 4, stride=4), torch.nn.Linear(16, 16))
    assert gains_from_channels_last(wide)
    assert not gains_from_channels_last(narrow)
    assert not gains_from_channels_last(patches)
    assert not gains_from_channels_last(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (4, 4)])
def test_bf16_gradients_of_strided_convolutions_are_right_on_tiny_maps(size, layout):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 32, 3, 2, 1, bias=False)
    steady_convolutions(conv)
    conv.to(memory_format=layout)
    x = torch.randn(64, 16, *size).contiguous(memory_format=layout)
    for _ in range(5):  # what lies beyond the map differs from call to call
        conv.weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = conv(x)
        upstream = torch.randn_like(out)
        out.backward(upstream)
        bf16, conv.weight.grad = conv.weight.grad, None
        conv(x).backward(upstream.float())
        assert (bf16 - conv.weight.grad).norm() < 0.02 * conv.weight.grad.norm()
