import pytest
import torch
import torch.nn.functional as F

from imprint.core.errors import ConfigError
from imprint.losses.patches import centred_targets, masked_mean_weights, patch_cross_entropy


def case(rows=13, width=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
    teacher = torch.randn(rows, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.rand(rows, generator=generator)
    return student.requires_grad_(), teacher, weight


def plain(student, targets, weight, temperature):
    return -(weight * (targets * F.log_softmax(student / temperature, dim=-1)).sum(dim=-1)).sum()


@pytest.mark.parametrize("width", [7, 70_000])  # one chunk of many rows, and chunks of one row
def test_loss_and_gradient_are_those_of_the_formula(width):
    student, teacher, weight = case(5, width)
    center = torch.linspace(-1, 1, width, dtype=torch.float64)
    targets = torch.softmax((teacher - center) / 0.05, dim=-1)
    loss = patch_cross_entropy(student, centred_targets(teacher, center, 0.05), weight, 0.1)
    (grad,) = torch.autograd.grad(3.0 * loss, student)
    expected = plain(student, targets, weight.double(), 0.1)
    (wanted,) = torch.autograd.grad(3.0 * expected, student)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-14)
    given = patch_cross_entropy(student, targets, weight, 0.1)
    torch.testing.assert_close(given, loss, rtol=1e-12, atol=0)


def test_overwriting_gives_the_same_gradient_in_the_logits_own_memory():
    student, teacher, weight = case(dtype=torch.float32)
    targets = torch.softmax(teacher, dim=-1)
    (wanted,) = torch.autograd.grad(patch_cross_entropy(student, targets, weight, 0.1), student)
    logits = student * 1.0
    memory = logits.data_ptr()
    caught = []
    logits.register_hook(lambda g: caught.append(g.data_ptr()))
    (grad,) = torch.autograd.grad(patch_cross_entropy(logits, targets, weight, 0.1, overwrite=True), student)
    assert caught == [memory]
    torch.testing.assert_close(grad, wanted)
    with pytest.raises(ConfigError, match="leaf"):
        patch_cross_entropy(student, targets, weight, 0.1, overwrite=True)


def test_gradient_is_handed_over_once():
    student, teacher, weight = case()
    loss = patch_cross_entropy(student, torch.softmax(teacher, -1), weight, 0.1)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_no_row_is_a_loss_of_zero_and_rows_of_no_weight_take_no_gradient():
    student, teacher, weight = case()
    weight[4:] = 0
    loss = patch_cross_entropy(student, torch.softmax(teacher, -1), weight, 0.1)
    loss.backward()
    assert (student.grad[4:] == 0).all() and (student.grad[:4] != 0).any(dim=1).all()
    none = student[:0]
    empty = patch_cross_entropy(none, torch.softmax(teacher, -1)[:0], weight[:0], 0.1)
    empty.backward()
    assert empty.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_small_gradients(dtype):
    student, teacher, _ = case(rows=9, width=4096, dtype=dtype)
    weight = torch.full((9,), 1e-5)
    scale = 2.0**16 if dtype == torch.float16 else 1.0
    targets = centred_targets(teacher, torch.zeros(4096), 0.07)
    loss = patch_cross_entropy(student, targets, weight, 0.1)
    (loss * scale).backward()
    exact = student.detach().double().requires_grad_()
    plain(exact, torch.softmax(teacher.double() / 0.07, -1), weight.double(), 0.1).backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(student.grad.double() / scale, exact.grad, rtol=2e-2, atol=1e-9)


def test_weights_average_over_masked_patches_then_over_rows():
    mask = torch.tensor([[True, True, False], [False, False, False], [False, True, False], [True, True, True]])
    places = mask.flatten().nonzero().squeeze(1)
    weight = masked_mean_weights(mask, places)
    torch.testing.assert_close(weight, torch.tensor([1 / 8, 1 / 8, 1 / 4, 1 / 12, 1 / 12, 1 / 12]))


def test_what_does_not_fit_is_refused():
    student, teacher, weight = case()
    with pytest.raises(ConfigError, match="do not fit"):
        patch_cross_entropy(student, teacher[:-1], weight, 0.1)
    with pytest.raises(ConfigError, match="do not fit"):
        patch_cross_entropy(student, teacher, weight[:-1], 0.1)
    with pytest.raises(ConfigError, match="temperature"):
        patch_cross_entropy(student, teacher, weight, 0.0)
