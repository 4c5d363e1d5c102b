"""EsViT's region loss: against the double loop, closed forms, gradients, precision, memory, shards."""

import math

import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.esvit import match_regions, region_cross_entropy


def inputs(w=2, local=3, batch=3, t=5, tl=2, s=5, k=7, d=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    student = [draw(w, batch, t, k).requires_grad_()] + ([draw(local, batch, tl, k).requires_grad_()] if local else [])
    features = [draw(w, batch, t, d)] + ([draw(local, batch, tl, d)] if local else [])
    return student, features, draw(w, batch, s, k), draw(w, batch, s, d), draw(k)


def naive(student, features, teacher, teacher_features, center, tau_s, tau_t):
    views = [row for part in student for row in part]
    feats = [row for part in features for row in part]
    terms = []
    for w in range(len(teacher)):
        p = torch.softmax((teacher[w] - center) / tau_t, -1)
        for v in range(len(views)):
            if v == w:
                continue
            for b in range(teacher.shape[1]):
                cosine = F.normalize(feats[v][b], dim=-1) @ F.normalize(teacher_features[w][b], dim=-1).T
                target = p[b][cosine.argmax(-1)]
                terms.append(-(target * torch.log_softmax(views[v][b] / tau_s, -1)).sum(-1).mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("local", [0, 3])
@pytest.mark.parametrize("w", [2, 3])
def test_equals_the_double_loop_with_its_gradient(w, local):
    student, *rest = inputs(w=w, local=local, s=4 if local else 5)
    loss = region_cross_entropy(student, *rest, 0.2, 0.05)
    grads = torch.autograd.grad(loss, student)
    expected = naive(student, *rest, 0.2, 0.05)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for found, wanted in zip(grads, torch.autograd.grad(expected, student), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-14)


def test_uniform_students_cost_log_k():
    student, *rest = inputs(k=9)
    zeros = [torch.zeros_like(part) for part in student]
    torch.testing.assert_close(
        region_cross_entropy(zeros, *rest, 0.1, 0.04), torch.tensor(math.log(9), dtype=torch.float64)
    )


def test_matches_stay_within_the_image_and_ignore_lengths():
    _, features, teacher, _, _ = inputs()
    teacher_features = torch.stack([features[0][1], features[0][0]])  # the other view's regions, unchanged
    found = match_regions(features[0] * 3.0, teacher_features * torch.rand(2, 3, 5, 1).double().add(0.1))
    own = torch.arange(5).expand(3, 5)
    base = torch.arange(3)[:, None] * 5
    assert torch.equal(found[1, 0], own + base + 15) and torch.equal(found[0, 1], own + base)
    assert teacher.shape[2] == 5


def test_gradient_reaches_the_students_logits_only():
    student, features, teacher, teacher_features, center = inputs()
    others = [*features, teacher, teacher_features, center]
    for other in others:
        other.requires_grad_()
    region_cross_entropy(student, features, teacher, teacher_features, center, 0.1, 0.04).backward()
    assert all(part.grad is not None for part in student) and all(other.grad is None for other in others)


def test_two_halves_equal_the_whole():
    student, features, teacher, teacher_features, center = inputs(batch=4)
    whole = region_cross_entropy(student, features, teacher, teacher_features, center, 0.1, 0.04)
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        parts = [[x[:, half] for x in many] for many in (student, features)]
        halves.append(region_cross_entropy(*parts, teacher[:, half], teacher_features[:, half], center, 0.1, 0.04))
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(dtype):
    student, features, teacher, teacher_features, center = inputs(dtype=dtype)
    scaled = [(part.detach() * 1e4).requires_grad_() for part in student]
    loss = region_cross_entropy(scaled, features, teacher * 1e4, teacher_features, center, 0.1, 0.04)
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert all(torch.isfinite(part.grad).all() for part in scaled)


def test_overwriting_gives_the_same_gradient_in_the_logits_memory():
    student, *rest = inputs()
    expected = torch.autograd.grad(region_cross_entropy(student, *rest, 0.1, 0.04), student)
    computed = [part * 1.0 for part in student]
    where = [part.data_ptr() for part in computed]
    region_cross_entropy(computed, *rest, 0.1, 0.04, overwrite=True).backward()
    for part, grad, memory, twin in zip(student, expected, where, computed, strict=True):
        torch.testing.assert_close(part.grad, grad)
        assert twin.data_ptr() == memory
        torch.testing.assert_close(twin.detach(), grad)


def test_what_does_not_fit_is_refused():
    student, features, teacher, teacher_features, center = inputs()
    with pytest.raises(ConfigError, match="do not fit"):
        region_cross_entropy(student, features[:1], teacher, teacher_features, center, 0.1, 0.04)
    with pytest.raises(ConfigError, match="do not fit"):
        region_cross_entropy(student, features, teacher[:, :, :, :3], teacher_features, center, 0.1, 0.04)
    with pytest.raises(ConfigError, match="no pair"):
        region_cross_entropy([student[0][:1]], [features[0][:1]], teacher[:1], teacher_features[:1], center, 0.1, 0.04)
    with pytest.raises(ConfigError, match="teacher_temp"):
        region_cross_entropy(student, features, teacher, teacher_features, center, 0.1, 0.0)
