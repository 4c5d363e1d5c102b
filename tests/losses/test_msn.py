import math

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses import msn
from imprint.losses.msn import msn_loss

VARIANTS = [
    {},
    {"memax_weight": 0.0},
    {"entropy_weight": 0.7, "memax_weight": 2.5, "temperature": 0.2},
    {"smoothing": 0.1},
    {"smoothing": 0.1, "sinkhorn_iterations": 3, "entropy_weight": 0.3},
    {"sinkhorn_iterations": 3, "sharpening": 0.5},
]


def plain(anchors, targets, prototypes, *, temperature=0.1, sharpening=0.25, memax_weight=1.0, entropy_weight=0.0,
          smoothing=0.0, sinkhorn_iterations=0):  # fmt: skip
    """The equations as they stand, with whole matrices and automatic gradients."""
    count = len(prototypes)
    labels = torch.full((count, count), smoothing / count, dtype=prototypes.dtype)
    labels += (1 - smoothing) * torch.eye(count, dtype=prototypes.dtype)

    def probabilities(x):
        return torch.softmax(F.normalize(x) @ F.normalize(prototypes).T / temperature, dim=1) @ labels

    with torch.no_grad():
        t = probabilities(targets) ** (1 / sharpening)
        t = t / t.sum(1, keepdim=True)
        for _ in range(sinkhorn_iterations):
            t = t / t.sum(0, keepdim=True)
            t = t / t.sum(1, keepdim=True)
    p = probabilities(anchors)
    mean = p.mean(0)
    cross = -(t.repeat(len(p) // len(t), 1) * p.log()).sum(1).mean()
    memax = (mean * mean.log()).sum() + math.log(count)
    entropy = -(p * p.log()).sum(1).mean()
    return cross + memax_weight * memax + entropy_weight * entropy, cross, memax, entropy, t


def inputs(views=3, images=10, count=7, width=6, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((views * images, width), (images, width), (count, width))
    return [(torch.randn(s, dtype=torch.float64) * 3).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@pytest.mark.parametrize(("chunk", "kept"), [(3, 2**22), (3, 0), (4096, 2**22)], ids=["parts", "streamed", "whole"])
def test_is_the_plain_formula(settings, chunk, kept, monkeypatch):
    monkeypatch.setattr(msn, "KEPT", kept)
    monkeypatch.setattr(
        msn, "_chunks", lambda _v, images, _k, _d: [slice(s, min(s + chunk, images)) for s in range(0, images, chunk)]
    )
    ours, theirs = inputs(), inputs()
    found, expected = msn_loss(*ours, **settings), plain(*theirs, **settings)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got.detach(), want.detach(), rtol=1e-11, atol=1e-12)
    (2 * found.loss).backward()
    (2 * expected[0]).backward()
    assert ours[1].grad is None, "targets take no gradient"
    for i in (0, 2):
        torch.testing.assert_close(ours[i].grad, theirs[i].grad, rtol=1e-9, atol=1e-12)


def test_one_anchor_view_in_one_chunk():
    ours, theirs = inputs(views=1), inputs(views=1)
    found, expected = msn_loss(*ours, entropy_weight=0.5), plain(*theirs, entropy_weight=0.5)
    found.loss.backward()
    expected[0].backward()
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[2].grad, theirs[2].grad, rtol=1e-9, atol=1e-12)


def test_chunks_cover_every_image_once():
    parts = msn._chunks(3, 10, 2**15, torch.device("cpu"))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(10))
    assert len(msn._chunks(1, 10, 2**30, torch.device("cpu"))) == 10


def test_memax_is_zero_for_even_use_and_log_k_for_one_prototype():
    prototypes = torch.eye(4, dtype=torch.float64)
    even = msn_loss(prototypes, prototypes, prototypes, temperature=0.01)
    one = msn_loss(prototypes[:1].repeat(4, 1), prototypes, prototypes, temperature=0.01)
    assert even.memax < 1e-9 and one.memax == pytest.approx(math.log(4), abs=1e-6)


def test_sinkhorn_uses_every_prototype_where_plain_targets_use_one():
    torch.manual_seed(0)
    prototypes = torch.eye(8)
    targets = prototypes[:1] + 0.05 * torch.randn(64, 8)
    plain_targets = msn_loss(targets, targets, prototypes).targets_BK
    balanced = msn_loss(targets, targets, prototypes, sinkhorn_iterations=3).targets_BK
    assert plain_targets.mean(0).max() > 0.9 and balanced.mean(0).max() < 0.2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_computed_in_float32(dtype):
    anchors, targets, prototypes = inputs(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = msn_loss(anchors * 1e3, targets, prototypes)
    found.loss.backward()
    assert found.loss.dtype == torch.float32 and anchors.grad.dtype == dtype
    wide = msn_loss(*(x.detach().double() for x in (anchors, targets, prototypes)))
    torch.testing.assert_close(found.loss.double(), wide.loss, rtol=2e-3, atol=2e-3)


def test_vanishing_probabilities_stay_finite():
    anchors, targets, prototypes = inputs(dtype=torch.float32)
    found = msn_loss(anchors, targets, prototypes, temperature=1e-3, entropy_weight=1.0)
    found.loss.backward()
    assert torch.isfinite(found.loss) and anchors.grad.isfinite().all() and prototypes.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"sharpening": 2.0}, {"smoothing": -0.1}, {"memax_weight": -1.0}],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="msn_loss"):
        msn_loss(*inputs(), **settings)


def test_shapes_that_do_not_fit_are_refused():
    anchors, targets, prototypes = inputs()
    with pytest.raises(ConfigError, match="do not fit"):
        msn_loss(anchors[:-1], targets, prototypes)
    with pytest.raises(ConfigError, match="do not fit"):
        msn_loss(anchors, targets, prototypes[:, :-1])
