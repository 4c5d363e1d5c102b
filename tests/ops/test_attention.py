"""Both ways of attention give the same."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from imprint.ops import attention
from imprint.ops.attention import attend


def inputs(queries=7, keys=7, dtype=torch.bfloat16):
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, 8, dtype=dtype, requires_grad=True) for n in (queries, keys, keys)]


@pytest.mark.parametrize("kind", ["plain", "causal", "bool", "float", "cross"])
def test_multiplied_out_equals_fused_in_value_and_gradient(kind):
    q, k, v = inputs(keys=11 if kind == "cross" else 7)
    mask = {"bool": torch.rand(2, 1, 1, 7) > 0.3, "float": torch.randn(3, 7, 7)}.get(kind)
    if kind == "bool":
        mask[..., 0] = True
    ours = attend(q, k, v, mask_TS=mask, causal=kind == "causal")
    ours.float().square().sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    floats = mask.double() if kind == "float" else mask
    truth = scaled_dot_product_attention(*exact, attn_mask=floats, is_causal=kind == "causal")
    truth.square().sum().backward()
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), truth, rtol=0.03, atol=0.03)
    for mine, true in zip((q, k, v), exact, strict=True):
        torch.testing.assert_close(mine.grad.double(), true.grad, rtol=0.05, atol=0.15)


def test_other_formats_and_long_sequences_are_fused(monkeypatch):
    called = []
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda *a, **k: called.append(1) or a[2])
    attend(*inputs(dtype=torch.float32))
    monkeypatch.setattr(attention, "MOST", 48)
    attend(*inputs())
    assert len(called) == 2
    monkeypatch.setattr(attention, "MOST", 49)
    attend(*inputs())
    assert len(called) == 2


def test_dropped_shares_keep_their_mean():
    q, k, v = inputs()
    torch.manual_seed(1)
    many = torch.stack([attend(q, k, v, dropout_p=0.3).float().detach() for _ in range(400)]).mean(0)
    torch.testing.assert_close(many, attend(q, k, v).float().detach(), rtol=0.2, atol=0.15)
