import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.capi import balanced_assignments, clustering_loss, streamed_clustering
from imprint.losses.streamed import rows_per_part

POSITIONS, IMAGES, WIDTH, CLUSTERS = 5, 24, 6, 4


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(POSITIONS, IMAGES, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(CLUSTERS, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(CLUSTERS, generator=generator, dtype=torch.float64)
    return F.normalize(x, dim=-1), weight.requires_grad_(), bias.requires_grad_()


def test_clusters_are_balanced_at_every_position():
    u, w, b = draw()
    codes = balanced_assignments(u @ w.T + b, 0.3, 50)
    torch.testing.assert_close(codes.sum(-1), torch.ones(POSITIONS, IMAGES, dtype=torch.float64))
    torch.testing.assert_close(
        codes.sum(1), torch.full((POSITIONS, CLUSTERS), IMAGES / CLUSTERS, dtype=torch.float64), rtol=1e-3, atol=0
    )
    together = balanced_assignments(u @ w.T + b, 0.3, 50, positionwise=False)
    torch.testing.assert_close(together.sum((0, 1)) / (POSITIONS * IMAGES), torch.full((CLUSTERS,), 0.25).double())
    assert (together.sum(1) - IMAGES / CLUSTERS).abs().max() > 0.1


def test_positions_are_problems_of_their_own():
    u, w, b = draw()
    logits = u @ w.T + b
    codes = balanced_assignments(logits, 0.06, 3)
    for n in range(POSITIONS):
        torch.testing.assert_close(balanced_assignments(logits[n : n + 1], 0.06, 3)[0], codes[n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_1e4_stay_finite(dtype):
    u, w, _ = draw()
    logits = (u @ w.T * 1e4).detach().to(dtype)
    codes = balanced_assignments(logits, 0.06, 3)
    loss = clustering_loss(logits.requires_grad_(), codes, 0.12)
    loss.backward()
    assert codes.dtype == loss.dtype == torch.float32
    assert codes.isfinite().all() and loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("positionwise", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2 * IMAGES, 10_000])
def test_streamed_equals_whole(positionwise, with_bias, rows, monkeypatch):
    monkeypatch.setattr("imprint.losses.capi.rows_per_part", lambda width, device: rows)
    u, w, b = draw()
    places = torch.tensor([[4, 1]]).expand(IMAGES, -1).clone()
    places[3] = torch.tensor([0, 2])
    logits = u @ w.T + (b if with_bias else 0)
    codes = balanced_assignments(logits, 0.06, 3, positionwise=positionwise)
    whole = clustering_loss(logits, codes, 0.12)
    wanted = [w, b] if with_bias else [w]
    expected = torch.autograd.grad(2 * whole, wanted)
    loss, targets = streamed_clustering(
        u,
        w,
        b if with_bias else None,
        places,
        target_temp=0.06,
        prediction_temp=0.12,
        iterations=3,
        positionwise=positionwise,
    )
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    for a, e in zip(torch.autograd.grad(2 * loss, wanted), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-12)
    assert targets.shape == (2 * IMAGES, CLUSTERS)
    for image in range(IMAGES):
        for k, n in enumerate(places[image].tolist()):
            torch.testing.assert_close(targets[2 * image + k], codes[n, image])


def test_under_autocast_it_is_computed_in_float32():
    u, w, b = (x.detach().float().requires_grad_(x.requires_grad) for x in draw())
    arguments = {"target_temp": 0.06, "prediction_temp": 0.12, "iterations": 3}
    places = torch.zeros(IMAGES, 1, dtype=torch.int64)
    plain, targets = streamed_clustering(u, w, b, places, **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, same = streamed_clustering(u, w, b, places, **arguments)
    assert torch.equal(plain, low) and torch.equal(targets, same)
    assert rows_per_part(CLUSTERS, u.device) > POSITIONS * IMAGES


def test_misfits_are_named():
    with pytest.raises(ConfigError, match=r"\(N, B, K\)"):
        balanced_assignments(torch.zeros(3, 4), 0.06, 3)
    with pytest.raises(ConfigError, match="at least 1"):
        balanced_assignments(torch.zeros(2, 3, 4), 0.06, 0)
    with pytest.raises(ConfigError, match="one shape"):
        clustering_loss(torch.zeros(3, 4), torch.zeros(3, 5), 0.1)
