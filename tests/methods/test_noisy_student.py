"""Noisy Student against Algorithm 1 of arXiv 1911.04252 and the public code."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress
from imprint.data.batch import Batch
from imprint.data.pseudo_labels import PseudoLabels
from imprint.methods.noisy_student import NoisyStudent, NoisyStudentConfig
from imprint.recipes.book import stages_of

T = Progress(0, 10, 5)


def encoder(width=32, **changes):
    arch = Arch(layers=(1, 1, 1, 1), channels=(16, 16, 32, width))
    return build_encoder("resnet18", image_size=32, stem="cifar", arch=arch, channels=3, **changes)


def method(width=32, drop_path=0.0, **changes):
    torch.manual_seed(0)
    return NoisyStudent(NoisyStudentConfig(classes=3, **changes), encoder(width, drop_path=drop_path)).train()


def batch(rows=8, **more):
    images = torch.randn(1, rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(views={"global": images}, index_B=torch.arange(rows), labels_B=torch.arange(rows) % 3, **more)


def taught(rows=8):
    soft = torch.softmax(torch.randn(rows, 3, generator=torch.Generator().manual_seed(2)), 1)
    return batch(rows, targets={"pseudo": torch.arange(rows) % 2 == 1, "classes": soft})


def test_a_teacher_learns_from_smoothed_labels():
    net = method(dropout=0.0)
    data = batch()
    out = net(data, T)
    expected = F.cross_entropy(net.network(data.views["global"][0]), data.labels_B, label_smoothing=0.1)
    torch.testing.assert_close(out.loss, expected)
    assert set(out.metrics) == {"noisy_student/accuracy"}


def test_a_student_learns_from_both_together_divided_by_the_labelled_ones():
    net = method(dropout=0.0, stage="student", ratio=1.0)
    data = taught()
    out = net(data, T)
    log_p = torch.log_softmax(net.network(data.views["global"][0]), 1)
    labelled = F.cross_entropy(log_p[::2], data.labels_B[::2], label_smoothing=0.1)
    soft = -(data.targets["classes"] * log_p)[1::2].sum(1).mean()
    torch.testing.assert_close(out.loss, labelled + soft)
    assert set(out.metrics) == {"noisy_student/accuracy", "noisy_student/agreement"}


def test_metrics_count_each_kind_by_itself():
    net = method(dropout=0.0, stage="student", ratio=1.0)
    data = taught()
    guess = net.network(data.views["global"][0]).argmax(1)
    metrics = net(dataclasses.replace(data, labels_B=torch.where(data.targets["pseudo"], guess, 2 - guess)), T).metrics
    assert metrics["noisy_student/agreement"] == 1.0
    assert metrics["noisy_student/accuracy"] == (guess[::2] == 1).float().mean()


def test_noise_is_there_in_training_and_gone_when_it_labels():
    """Dropout and stochastic depth change the loss of two calls; two calls of `classify` are equal to the bit."""
    net = method(drop_path=0.5, dropout=0.5)
    data = batch()
    assert not torch.equal(net(data, T).loss, net(data, T).loss)
    net.eval()
    images = data.views["global"][0]
    assert torch.equal(net.classify(images), net.classify(images))
    assert not any(m.training for m in net.modules())
    plain = method(average=0.0, dropout=0.5).eval()
    assert torch.equal(plain.classify(images), plain.classify(images))
    assert plain.encoder is plain.network.backbone


def test_the_average_follows_weights_and_statistics_and_is_what_labels():
    net = method(average=0.75)
    before = {k: v.clone() for k, v in net.average.state_dict().items()}
    with torch.no_grad():
        for p in net.network.parameters():
            p.add_(1.0)
        for m in net.network.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.add_(2.0)
                m.num_batches_tracked.add_(5)
    net.after_optimizer_step(Progress(0, 10, 5))  # after one step at most 2 / 11
    for name, value in net.average.state_dict().items():
        new = net.network.state_dict()[name]
        if value.is_floating_point():
            torch.testing.assert_close(value, before[name] * 2 / 11 + new * 9 / 11)
        else:
            assert torch.equal(value, new)
    before = net.average.linear.bias.clone()
    net.after_optimizer_step(Progress(9999, 20000, 5))
    torch.testing.assert_close(net.average.linear.bias, 0.75 * before + 0.25 * net.network.linear.bias)
    net.train()
    assert not net.average.training and net.network.training
    assert all(not p.requires_grad for p in net.average.parameters())
    assert net.encoder is net.average.backbone
    assert {n.split(".")[0] for g in net.param_groups() for n in g.names} == {"network"}


def test_a_student_starts_afresh_and_may_be_larger():
    teacher = method()
    student = method(width=48, stage="student")
    fresh = {k: v.clone() for k, v in student.state_dict().items()}
    assert "needs the run of its teacher" in student.lacks()
    student.inherit(teacher)
    assert student.lacks() is None and teacher.lacks() is None
    assert all(torch.equal(v, fresh[k]) for k, v in student.state_dict().items())


def test_a_student_may_go_on_from_its_teachers_averaged_weights():
    teacher, student = method(), method(stage="student", from_teacher=True)
    with torch.no_grad():
        teacher.average.linear.bias.fill_(7.0)
    student.inherit(teacher)
    assert student.network.linear.bias.eq(7.0).all() and student.average.linear.bias.eq(7.0).all()
    with pytest.raises(ConfigError, match="needs the teacher's encoder"):
        method(width=48, stage="student", from_teacher=True).inherit(teacher)
    with pytest.raises(ConfigError, match="--no-method.from-teacher"):
        student.inherit(nn.Module())


def test_a_teacher_of_other_classes_is_refused():
    other = NoisyStudent(NoisyStudentConfig(classes=4), encoder())
    with pytest.raises(ConfigError, match="4 classes and the student shall know 3"):
        method(stage="student").inherit(other)


def test_input_noise_is_randaugment_on_a_crop():
    (view,) = NoisyStudent.views(NoisyStudentConfig(), 224)
    assert view.crop.scale == (0.08, 1.0) and view.look.flip == 0.5
    assert (view.look.operations.number, view.look.operations.magnitude) == (2, 10.0)
    (plain,) = NoisyStudent.views(NoisyStudentConfig(operations=0), 224)
    assert plain.look.operations is None


def test_only_students_want_pseudo_labels():
    assert NoisyStudent.pseudo_labels(NoisyStudentConfig()) is None
    wanted = NoisyStudent.pseudo_labels(NoisyStudentConfig(stage="student"))
    assert wanted == PseudoLabels(confidence=0.3, per_class=130_000, soft=True, temperature=1.0, ratio=3.0)


@pytest.mark.parametrize(
    "bad", [{"dropout": 1.0}, {"confidence": -0.1}, {"ratio": 0.0}, {"temperature": 0.0}, {"per_class": -1}]
)
def test_settings_are_checked(bad):
    with pytest.raises(ConfigError):
        NoisyStudentConfig(**bad)


def test_the_papers_three_iterations():
    stages = stages_of("noisy_student/paper")
    assert [s.encoder.name for s in stages] == ["tf_efficientnet_b7", *["tf_efficientnet_l2"] * 3]
    assert [s.start for s in stages] == [None, "../stage-1", "../stage-2", "../stage-3"]
    assert [s.method.ratio for s in stages[1:]] == [14.0, 14.0, 28.0]
    for stage in stages:
        rows = (
            stage.batch_size
            if stage.start is None
            else NoisyStudent.pseudo_labels(stage.method).rows(stage.batch_size)[0]
        )
        assert rows == 2048
        assert stage.optim.lr.peak(stage.batch_size) == pytest.approx(0.128, rel=1e-6)
        assert stage.length == Epochs(350) and stage.encoder.drop_path == 0.2 and stage.method.dropout == 0.5
    clock = Progress(0, 350 * 100, 100)
    schedule = stages[0].optim.lr.schedule(2048)
    assert schedule(clock.at(100 * 100)) == pytest.approx(0.128 * 0.97 ** (100 // 2.4), rel=1e-6)
    b0 = stages_of("noisy_student/paper_b0")
    assert b0[1].method.ratio == 1.0 and b0[1].length == Epochs(700) and b0[1].method.operations == 0
