"""The supervised contrastive loss against its equation, closed forms, and itself in shards."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError
from imprint.losses import supcon as module
from imprint.losses.contrastive import nt_xent
from imprint.losses.supcon import supcon


def naive(features: Tensor, labels: Tensor | None, tau: float, base: float, contrast: str = "all") -> Tensor:
    """Equation 2 of the paper with two loops, times tau / base."""
    images, views = features.shape[:2]
    names = list(range(images)) if labels is None else labels.tolist()
    keys = [(b, v) for b in range(images) for v in range(views)]
    anchors = keys if contrast == "all" else [(b, 0) for b in range(images)]
    terms = []
    for anchor in anchors:
        others = [key for key in keys if key != anchor]
        s = {key: features[anchor] @ features[key] / tau for key in others}
        log_sum = torch.logsumexp(torch.stack(list(s.values())), 0)
        positives = [s[key] - log_sum for key in others if names[key[0]] == names[anchor[0]]]
        terms.append(-torch.stack(positives).mean() if positives else 0 * log_sum)
    return torch.stack(terms).mean() * tau / base


def batch(images: int = 7, views: int = 2, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images * 10 + views)
    features = F.normalize(torch.randn(images, views, width, generator=generator, dtype=torch.float64), dim=-1)
    return features.requires_grad_(), torch.randint(0, 3, (images,), generator=generator)


@pytest.fixture(params=[2, 3, 512], ids=lambda side: f"tile{side}")
def tile_side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    side: int = request.param
    monkeypatch.setattr(module, "_side", lambda device: side)
    return side


@pytest.mark.parametrize("contrast", ["all", "one"])
@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 1e-4])
def test_equals_the_double_loop(tile_side: int, views: int, contrast: str, temperature: float) -> None:
    features, labels = batch(views=views)
    labels[0] = 9  # the only one of its class
    expected = naive(features, labels, temperature, 0.07, contrast)
    loss = supcon(features, labels, temperature=temperature, contrast=contrast)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    (wanted,) = torch.autograd.grad(expected, features)
    (got,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-11)


def test_without_labels_it_is_simclr() -> None:
    features, _ = batch()
    loss = supcon(features, temperature=0.2, base_temperature=0.2)
    torch.testing.assert_close(loss, nt_xent(features[:, 0], features[:, 1], 0.2))
    names = torch.arange(7)
    torch.testing.assert_close(supcon(features, names, temperature=0.2, base_temperature=0.2), loss)


def test_negative_labels_mean_unlabelled() -> None:
    features, labels = batch()
    labels[2:5] = -1
    named = labels.clone()
    named[2:5] = torch.tensor([50, 51, 52])
    torch.testing.assert_close(supcon(features, labels), supcon(features, named))


def test_closed_forms() -> None:
    same = F.normalize(torch.ones(4, 2, 3, dtype=torch.float64), dim=-1)
    for labels in (None, torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.long)):
        value = supcon(same, labels, temperature=0.1, base_temperature=0.1)
        assert value.item() == pytest.approx(math.log(7), rel=1e-12)
    # No anchor has a positive: every term is 0, and nothing is pushed.
    features, _ = batch(views=1)
    loss = supcon(features, torch.arange(7))
    loss.backward()
    assert loss.item() == 0 and features.grad is not None and features.grad.abs().max() == 0
    lone = torch.ones(1, 1, 2, dtype=torch.float64, requires_grad=True)
    loss = supcon(lone, torch.tensor([3]))
    loss.backward()
    assert loss.item() == 0 and lone.grad is not None and lone.grad.abs().max() == 0


def test_anchors_without_positive_count_in_the_mean() -> None:
    features, _ = batch(images=4, views=1)
    pair = torch.tensor([0, 0, 1, 2])
    # Two of four anchors have a positive; the mean is over four.
    s = features[:, 0] @ features[:, 0].T / 0.1
    s = s.masked_fill(torch.eye(4, dtype=torch.bool), -math.inf)
    log_probability = s - s.logsumexp(1, keepdim=True)
    expected = -(log_probability[0, 1] + log_probability[1, 0]) / 4
    torch.testing.assert_close(supcon(features, pair, base_temperature=0.1), expected)


@pytest.mark.parametrize("contrast", ["all", "one"])
def test_shards_with_gathered_keys_equal_the_full_batch(tile_side: int, contrast: str) -> None:
    features, labels = batch(images=8)
    full = supcon(features, labels, contrast=contrast)  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(full, features)
    parts = [slice(0, 3), slice(3, 5), slice(5, 8)]
    losses = [
        supcon(
            features[part],
            labels[part],
            contrast=contrast,  # type: ignore[arg-type]
            features_all=features * 1,
            labels_all=labels,
            offset=part.start,
        )
        for part in parts
    ]
    total = sum(loss * (part.stop - part.start) / 8 for loss, part in zip(losses, parts, strict=True))
    assert isinstance(total, Tensor)
    torch.testing.assert_close(total, full, rtol=1e-11, atol=1e-12)
    (got,) = torch.autograd.grad(total, features)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-11)


def test_gradcheck_of_anchors_and_keys() -> None:
    features, labels = batch(images=3, width=3)
    keys, names = batch(images=5, width=3)
    names[1:4] = labels

    def gathered(a: Tensor, b: Tensor) -> Tensor:
        return supcon(a, labels, temperature=0.3, features_all=b, labels_all=names, offset=1)

    assert torch.autograd.gradcheck(gathered, (features, keys))
    assert not supcon(features.detach(), labels).requires_grad
    gathered(features, keys.detach()).backward()
    assert features.grad is not None and keys.grad is None


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_low_precision_stays_close(dtype: torch.dtype, bound: float) -> None:
    features, labels = batch(images=40, width=16)
    rough = features.detach().to(dtype)
    exact_leaf = rough.double().requires_grad_()
    supcon(exact_leaf, labels).backward()
    leaf = rough.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = supcon(leaf, labels)
    loss.backward()
    assert loss.dtype == torch.float32 and leaf.grad is not None and leaf.grad.dtype == dtype
    assert exact_leaf.grad is not None
    assert (leaf.grad.double() - exact_leaf.grad).norm() < bound * exact_leaf.grad.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e-4])
def test_extreme_inputs_stay_finite(dtype: torch.dtype, temperature: float) -> None:
    features, labels = batch(images=20)
    leaf = features.detach().clone()
    leaf[3] = 0.0
    leaf[5] = -leaf[4]
    leaf = leaf.to(dtype).requires_grad_()
    loss = supcon(leaf, labels, temperature=temperature)
    loss.backward()
    assert torch.isfinite(loss) and leaf.grad is not None and torch.isfinite(leaf.grad).all()


def test_bad_input_is_refused() -> None:
    features, labels = batch()
    with pytest.raises(ConfigError, match="one view and no labels"):
        supcon(features[:, :1])
    with pytest.raises(ConfigError, match="labels must be one per image"):
        supcon(features, labels[:3])
    with pytest.raises(ConfigError, match="labels_all"):
        supcon(features, labels, features_all=features)
    with pytest.raises(ConfigError, match="comes with features_all"):
        supcon(features, labels, labels_all=labels)
    with pytest.raises(ConfigError, match="offset 3"):
        supcon(features, labels, features_all=features, labels_all=labels, offset=3)
    with pytest.raises(ConfigError, match="contrast"):
        supcon(features, labels, contrast="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperatures"):
        supcon(features, labels, temperature=0.0)
    with pytest.raises(ConfigError, match="features must be"):
        supcon(features[:, 0], labels)
