import torch
from torch import nn

from imprint.nn.ema import ema_update_, frozen_copy


def test_ema_moves_parameters_and_leaves_buffers():
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = frozen_copy(student)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    student[1].running_mean.fill_(9.0)
    ema_update_(teacher, student, 0.75)
    for old, new, s in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * s)
    assert teacher[1].running_mean.abs().max() == 0
    ema_update_(teacher, student, 0.0)
    for new, s in zip(teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(new, s)


def test_frozen_copy_has_no_gradient_and_no_noise():
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.9))
    twin = frozen_copy(module)
    x = torch.randn(4, 8)
    assert not any(p.requires_grad for p in twin.parameters())
    assert twin.training
    torch.testing.assert_close(twin(x), twin[0](x))
    assert module[1].p == 0.9
