"""iBOT's two terms: against the double loop over all patches, closed forms, gradients, empty masks, shards."""

import math

import pytest
import torch

from imprint.core.errors import ConfigError
from imprint.losses.ibot import ibot_loss

TEMPS = {"student_temp": 0.1, "teacher_temp": 0.05, "patch_teacher_temp": 0.07}


def inputs(batch=3, local=2, patches=6, k=8, kp=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    mask = torch.rand(2 * batch, patches, generator=g) < 0.4
    mask[0] = False
    return {
        "student": draw(2 + local, batch, k).requires_grad_(),
        "teacher": draw(2, batch, k),
        "center": draw(k),
        "student_patch": draw(2 * batch, patches, kp).requires_grad_(),
        "teacher_patch": draw(2 * batch, patches, kp),
        "patch_center": draw(kp),
        "mask": mask,
    }


def call(x, **changes):
    places = x["mask"].flatten().nonzero().squeeze(1)
    return ibot_loss(
        x["student"],
        x["teacher"],
        x["center"],
        x["student_patch"].flatten(0, 1)[places],
        x["teacher_patch"].flatten(0, 1)[places],
        x["patch_center"],
        x["mask"],
        places,
        **{**TEMPS, **changes},
    )


def naive(x):
    t = torch.softmax((x["teacher"] - x["center"]) / 0.05, -1)
    terms = [
        -(t[w] * torch.log_softmax(x["student"][v] / 0.1, -1)).sum(-1).mean()
        for w in range(2)
        for v in range(len(x["student"]))
        if v != w
    ]
    p = torch.softmax((x["teacher_patch"] - x["patch_center"]) / 0.07, -1)
    each = -(p * torch.log_softmax(x["student_patch"] / 0.1, -1)).sum(-1) * x["mask"]
    crops = each.sum(1) / x["mask"].sum(1).clamp(min=1)
    by_view = crops.unflatten(0, (2, -1)).mean(1)
    return torch.stack(terms).mean(), by_view.mean()


def test_equals_the_double_loop_with_its_gradient():
    x = inputs()
    leaves = (x["student"], x["student_patch"])
    found, expected = call(x), naive(x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    grads = torch.autograd.grad(0.3 * found[0] + 2.0 * found[1], leaves)
    wanted = torch.autograd.grad(0.3 * expected[0] + 2.0 * expected[1], leaves)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)
    assert (grads[1][~x["mask"]] == 0).all()


def test_uniform_students_cost_log_k():
    x = inputs()
    x["mask"][0, 0] = True  # now every crop has a masked patch
    x["student"], x["student_patch"] = torch.zeros_like(x["student"]), torch.zeros_like(x["student_patch"])
    assert x["mask"].any(1).all()
    across, within = call(x)
    assert float(across) == pytest.approx(math.log(8)) and float(within) == pytest.approx(math.log(5))


def test_a_batch_without_masks_costs_nothing():
    x = inputs()
    x["mask"][:] = False
    _, within = call(x)
    within.backward()
    assert within == 0 and x["student_patch"].grad.abs().max() == 0


def test_two_halves_equal_the_whole():
    x = inputs(batch=4)
    whole = call(x)
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        part = dict(x)
        for key in ("student", "teacher"):
            part[key] = x[key][:, half]
        for key in ("student_patch", "teacher_patch", "mask"):
            part[key] = x[key].unflatten(0, (2, 4))[:, half].flatten(0, 1)
        halves.append(call(part))
    for i in range(2):
        torch.testing.assert_close((halves[0][i] + halves[1][i]) / 2, whole[i])


def test_gradient_reaches_the_student_only():
    x = inputs()
    others = [x[key].requires_grad_() for key in ("teacher", "center", "teacher_patch", "patch_center")]
    sum(call(x)).backward()
    assert x["student"].grad is not None and x["student_patch"].grad is not None
    assert all(other.grad is None for other in others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(dtype):
    x = inputs(dtype=dtype)
    for key in ("student", "student_patch"):
        x[key] = (x[key].detach() * 1e4).requires_grad_()
    for key in ("teacher", "teacher_patch"):
        x[key] = x[key] * 1e4
    across, within = call(x)
    (across + within).backward()
    assert across.dtype == within.dtype == torch.float32
    assert torch.isfinite(across) and torch.isfinite(within)
    assert torch.isfinite(x["student"].grad).all() and torch.isfinite(x["student_patch"].grad).all()


def test_what_does_not_fit_is_refused():
    x = inputs()
    with pytest.raises(ConfigError, match="patch_teacher_temp"):
        call(x, patch_teacher_temp=0.0)
    places = x["mask"].flatten().nonzero().squeeze(1)
    s, t = (x[key].flatten(0, 1)[places] for key in ("student_patch", "teacher_patch"))
    with pytest.raises(ConfigError, match="do not fit"):
        ibot_loss(x["student"], x["teacher"], x["center"], s, t[1:], x["patch_center"], x["mask"], places, **TEMPS)
