"""Knowledge distillation against the paper's equations, and its teachers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.stored import save_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch, Normalise
from imprint.data.views import PLAIN, CenterCrop, Crop
from imprint.losses.soft_targets import distillation_kl
from imprint.methods.distill import Distillation, DistillationConfig
from imprint.methods.simclr import SimCLR, SimCLRConfig
from imprint.methods.simclr_v2 import SimCLRv2, SimCLRv2Config
from imprint.train.teacher_cache import is_fixed

T = Progress(0, 10, 5)
LABELS = torch.tensor([0, 1, 2, -1, -1, -1, 2, -1])


def encoder(width=32, **options):
    arch = Arch(layers=(1, 1, 1, 1), channels=(16, 16, 32, width))
    return build_encoder("resnet18", image_size=32, stem="cifar", arch=arch, channels=3)


def vit(patch=8):
    arch = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    return build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=patch, arch=arch)


def batch(rows=8, labels=LABELS, **targets):
    images = torch.randn(1, rows, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Batch(views={"global": images}, index_B=torch.arange(rows), labels_B=labels, targets=targets)


@pytest.fixture
def taught():
    """Return a function that makes a student of a teacher that has learned (from noise) a little."""
    torch.manual_seed(0)
    teacher = Distillation(DistillationConfig(alpha=0.0, classes=3, dropout=0.5), encoder()).train()
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.2)
    teacher(batch(), T)

    def make(own=None, **changes):
        torch.manual_seed(1)
        cfg = dataclasses.replace(DistillationConfig(classes=3), **changes)
        student = Distillation(cfg, own or encoder(16)).train()
        student.inherit(teacher)
        return student, teacher

    return make


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_targets_are_the_papers(taught, temperature):
    student, teacher = taught(temperature=temperature)
    data = batch()
    images = data.views["global"][0]
    loss = student(data, T).loss
    with torch.no_grad():
        p = torch.softmax(teacher.eval().classify(images) / temperature, 1)
    log_q = torch.log_softmax(student.classify(images) / temperature, 1)
    expected = temperature**2 * (p * (p.log() - log_q)).sum(1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


def test_images_without_a_label_take_the_soft_term_only(taught):
    student, teacher = taught(alpha=0.25, temperature=4.0)
    data = batch()
    out = student(data, T)
    images = data.views["global"][0]
    logits = student.classify(images)
    soft = distillation_kl(logits, teacher.eval().classify(images), 4.0)
    known = LABELS >= 0
    hard = F.cross_entropy(logits[known], LABELS[known], reduction="sum") / 8
    torch.testing.assert_close(out.loss, 0.25 * soft + 0.75 * hard)
    none = student(batch(labels=torch.full((8,), -1)), T)
    torch.testing.assert_close(none.loss, 0.25 * soft)
    assert none.metrics["distill/accuracy"] == 0
    right = (logits.argmax(1)[known] == LABELS[known]).float().mean()
    assert out.metrics["distill/accuracy"] == right
    with pytest.raises(ConfigError, match="images have none"):
        student(batch(labels=None), T)


def test_without_labels_only_alpha_one_works(taught):
    student, teacher = taught(alpha=1.0)
    out = student(batch(labels=None), T)
    assert torch.isfinite(out.loss) and set(out.metrics) == {"distill/agreement"}
    # Labels that are there are only counted.
    assert student(batch(), T).loss == out.loss


def test_the_gradient_keeps_its_size_when_the_temperature_grows():
    """Sec. 2.1: at high T the gradient of T^2 KL tends to (z_i - v_i) / K for zero-mean logits."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(16, 10, generator=generator, dtype=torch.float64)
    teacher = torch.randn(16, 10, generator=generator, dtype=torch.float64)
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    limit = (student - teacher) / 10 / 16
    sizes = {}
    for temperature in (1.0, 5.0, 20.0, 100.0, 1000.0):
        z = student.clone().requires_grad_()
        distillation_kl(z, teacher, temperature).backward()
        sizes[temperature] = (z.grad.norm() / limit.norm()).item()
        if temperature == 1000.0:
            torch.testing.assert_close(z.grad, limit, rtol=2e-2, atol=1e-5)
    assert all(0.9 < sizes[t] < 1.1 for t in (20.0, 100.0, 1000.0))
    assert sizes[100.0] / sizes[1000.0] == pytest.approx(1.0, abs=0.02)


def test_the_teacher_stays_as_it_is(taught):
    student, teacher = taught(match=("logits", "pooled", "tokens"), own=encoder(16))
    before = {k: v.clone() for k, v in student.teacher.state_dict().items()}
    theirs = {k: v.clone() for k, v in teacher.state_dict().items()}
    student.train()
    assert not any(m.training for m in student.teacher.modules())
    student(batch(), T).loss.backward()
    assert all(torch.equal(v, before[k]) for k, v in student.teacher.state_dict().items())  # BatchNorm's too
    assert all(torch.equal(v, theirs[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in student.teacher.parameters())
    assert all(p.grad is not None for n, p in student.named_parameters() if not n.startswith("teacher."))
    named = {name.split(".")[0] for group in student.param_groups() for name in group.names}
    assert named == {"backbone", "head", "projections"}
    assert student.encoder is student.backbone and student.teacher.source.encoder is not teacher.backbone


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_features_are_matched_through_a_projection(taught, distance):
    student, teacher = taught(match=("pooled",), distance=distance, feature_weight=3.0, classes=0)
    assert student.head is None and student.classify(batch().views["global"][0]) is None
    out = student(batch(labels=None), T)
    images = batch().views["global"][0]
    with torch.no_grad():
        wanted = teacher.eval().backbone(images).pooled_BD
    own = student.projections["pooled"](student.backbone(images).pooled_BD)
    if distance == "mse":
        expected = ((own - F.layer_norm(wanted, (32,))) ** 2).mean()
    else:
        expected = (1 - F.cosine_similarity(own, wanted)).mean()
    torch.testing.assert_close(out.loss, 3 * expected)
    torch.testing.assert_close(out.metrics["distill/pooled"], expected.detach())


def test_logits_and_features_add_up(taught):
    both, _ = taught(match=("logits", "pooled"), feature_weight=2.0)
    out = both(batch(labels=None), T)
    logits, _ = taught()
    logits.backbone.load_state_dict(both.backbone.state_dict())
    logits.head.load_state_dict(both.head.state_dict())
    torch.testing.assert_close(out.loss, logits(batch(labels=None), T).loss + 2 * out.metrics["distill/pooled"])


def test_tokens_need_the_same_grid(taught, tmp_path):
    student, _ = taught(match=("tokens",), own=vit(8), classes=0)  # a CNN of stride 8 teaches a ViT of patches of 8
    assert torch.isfinite(student(batch(labels=None), T).loss)
    wrong, _ = taught(match=("tokens",), own=vit(16), classes=0)
    with pytest.raises(ConfigError, match="the student has 4 and the teacher 16"):
        wrong(batch(labels=None), T)
    save_encoder(vit(16).eval(), tmp_path)
    cfg = DistillationConfig(match=("tokens",), teacher=str(tmp_path), teacher_size=64)
    assert torch.isfinite(Distillation(cfg, vit(8))(batch(labels=None), T).loss)  # shown larger, it has the same grid


def test_answers_of_the_batch_are_taken_when_they_are_there(taught):
    student, _ = taught(match=("logits", "pooled"))
    data = batch()
    direct = student(data, T).loss
    said = student.teacher(data.views["global"][0])
    assert set(said) == {"teacher:logits", "teacher:pooled"}
    student.teacher.forward = None  # must not be asked
    kept = student(batch(**said), T).loss
    assert torch.equal(direct, kept)


def test_a_timm_model_in_a_file_teaches(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    cfg = DistillationConfig(teacher="timm:resnet18", teacher_weights=str(tmp_path / "w.pth"), temperature=2.0)
    student = Distillation(cfg, vit()).train()
    run = Normalise((0.5,), (0.5,))
    student.normalised_by(run)
    assert student.classes == 5 and student.lacks() is None
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    data = Batch(views={"global": run(images)[None]}, index_B=torch.arange(4))
    with torch.no_grad():
        wanted = model(Normalise()(images))
    expected = distillation_kl(student.classify(run(images)), wanted, 2.0)
    torch.testing.assert_close(student(data, T).loss, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="5 classes and the student shall know 10"):
        Distillation(dataclasses.replace(cfg, classes=10), vit())


def test_an_encoder_teaches_features_only(tmp_path):
    save_encoder(encoder(), tmp_path)
    cfg = DistillationConfig(teacher=str(tmp_path), match=("pooled",))
    assert torch.isfinite(Distillation(cfg, vit())(batch(labels=None), T).loss)
    with pytest.raises(ConfigError, match="no classifier"):
        Distillation(dataclasses.replace(cfg, match=("logits",), classes=3), vit())


def test_runs_of_other_methods_teach(taught):
    classifier = SimCLRv2(SimCLRv2Config(stage="finetune", classes=3, projection=16), encoder()).eval()
    student = Distillation(DistillationConfig(classes=3, match=("logits", "pooled"), teacher_size=64), vit())
    student.inherit(classifier)
    images = batch().views["global"][0]
    large = F.interpolate(images, size=(64, 64), mode="bicubic", antialias=True)
    said = student.teacher(images)
    with torch.no_grad():
        torch.testing.assert_close(said["teacher:logits"], classifier.classify(large))
        torch.testing.assert_close(said["teacher:pooled"], classifier.encoder(large).pooled_BD)
    pretrained = SimCLR(SimCLRConfig(), encoder())
    other = Distillation(DistillationConfig(match=("pooled",)), vit())
    other.inherit(pretrained)
    assert torch.isfinite(other(batch(labels=None), T).loss)
    with pytest.raises(ConfigError, match="no classifier"):
        Distillation(DistillationConfig(classes=3), vit()).inherit(pretrained)


def test_a_student_of_a_student_does_not_carry_its_teacher(taught):
    student, _ = taught()
    next_one = Distillation(DistillationConfig(classes=3), encoder(16))
    next_one.inherit(student)
    assert sum(name.count("teacher") for name in next_one.state_dict()) == len(next_one.teacher.state_dict())
    with torch.no_grad():
        images = batch().views["global"][0]
        assert torch.equal(next_one.teacher(images)["teacher:logits"], student.eval().classify(images))


def test_labels_alone_go_on_from_a_pretrained_encoder(taught):
    pretrained = SimCLR(SimCLRConfig(), encoder())
    teacher = Distillation(DistillationConfig(alpha=0.0, classes=3), encoder())
    teacher.inherit(pretrained)
    assert all(torch.equal(v, pretrained.encoder.state_dict()[k]) for k, v in teacher.backbone.state_dict().items())
    assert teacher.teacher is None and teacher.lacks() is None and teacher.frozen_teacher() is None
    again = Distillation(DistillationConfig(alpha=0.0, classes=3), encoder())
    again.inherit(teacher)
    assert all(torch.equal(v, teacher.head.state_dict()[k]) for k, v in again.head.state_dict().items())
    with pytest.raises(ConfigError, match="another shape"):
        Distillation(DistillationConfig(alpha=0.0, classes=3), encoder(16)).inherit(pretrained)


def test_views_are_fixed_only_in_the_centre():
    (center,) = Distillation.views(DistillationConfig(crop="center"), 32)
    assert center.name == "global" and isinstance(center.crop, CenterCrop) and center.look == PLAIN
    (random,) = Distillation.views(DistillationConfig(crop_scale=(0.3, 1.0), flip=0.25), 32)
    assert isinstance(random.crop, Crop) and random.crop.scale == (0.3, 1.0) and random.look.flip == 0.25
    assert is_fixed(center) and not is_fixed(random)
    assert not is_fixed(dataclasses.replace(center, look=random.look))


def test_what_cannot_work_is_said():
    student = Distillation(DistillationConfig(classes=3), encoder())
    assert "--start" in student.lacks()
    with pytest.raises(ConfigError, match="needs a teacher"):
        student(batch(), T)
    with pytest.raises(ConfigError, match="number of classes is not known"):
        Distillation(DistillationConfig(alpha=0.0), encoder())
    for wrong in (
        {"alpha": 1.5},
        {"temperature": 0.0},
        {"match": ()},
        {"match": ("pooled", "pooled")},
        {"teacher": "run", "teacher_weights": "w.pth"},
    ):
        with pytest.raises(ConfigError):
            DistillationConfig(**wrong)
    assert Distillation.wants_classes(DistillationConfig())
    assert not Distillation.wants_classes(DistillationConfig(match=("pooled",)))
    assert Distillation.wants_classes(DistillationConfig(match=("pooled",), alpha=0.5))
