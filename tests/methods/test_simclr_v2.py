"""SimCLR v2 stage by stage, against the paper's equations."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.losses.contrastive import nt_xent
from imprint.methods.simclr import SimCLR, SimCLRConfig
from imprint.methods.simclr_v2 import SimCLRv2, SimCLRv2Config
from imprint.recipes.book import stages_of

T = Progress(0, 10, 5)
CONFIG = SimCLRv2Config(projection=16, classes=3)


def encoder(width=32):
    arch = Arch(layers=(1, 1, 1, 1), channels=(16, 16, 32, width))
    return build_encoder("resnet18", image_size=32, stem="cifar", arch=arch, channels=3)


def method(stage, width=32, **changes):
    torch.manual_seed(0)
    return SimCLRv2(dataclasses.replace(CONFIG, stage=stage, **changes), encoder(width)).train()


def batch(views, rows=8, labels=None):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(views, rows, 3, 32, 32, generator=generator)
    return Batch(views={"global": images}, index_B=torch.arange(rows), labels_B=labels)


@pytest.fixture
def chain():
    """Pretrained, fine-tuned and distilling methods, each from the one before, with trained-looking statistics."""
    first = method("pretrain")
    first(batch(2), T)
    second = method("finetune")
    second.inherit(first)
    second(batch(1, labels=torch.arange(8) % 3), T)
    third = method("distill")
    third.inherit(second)
    return first, second, third


def test_pretraining_is_nt_xent_on_a_three_layer_head():
    net = method("pretrain")
    assert [type(m).__name__ for m in net.branch.head] == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d",
    ]  # fmt: skip
    assert [m.out_features for m in net.branch.head if isinstance(m, nn.Linear)] == [32, 32, 16]
    assert not net.branch.head[-1].bias.requires_grad
    data = batch(2)
    loss = net(data, T).loss
    z1, z2 = net.branch(data.views["global"])
    assert torch.allclose(loss, nt_xent(z1, z2, 0.1), rtol=1e-5)


def test_the_memory_adds_negatives_and_follows_by_ema():
    net = method("pretrain", memory=32, momentum=0.5)
    data = batch(2)
    keys = net.keys.keys.clone()
    before = [p.clone() for p in net.slow.parameters()]
    loss = net(data, T).loss
    z1, z2 = net.branch(data.views["global"])
    anchors = F.normalize(torch.cat([z1, z2]), dim=1)
    logits = anchors @ torch.cat([anchors, keys]).T / 0.1
    logits[:, :16].fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(16).roll(8))
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert net.keys.pointer.item() == 16 and not torch.equal(net.keys.keys[:16], keys[:16])
    assert torch.equal(net.keys.keys[16:], keys[16:])
    with torch.no_grad():
        for p in net.branch.parameters():
            p.add_(1.0)
        net.after_optimizer_step(T)
    assert all(torch.allclose(p, b + 0.5) for p, b in zip(net.slow.parameters(), before, strict=True))
    assert all(not p.requires_grad for p in net.slow.parameters())


@pytest.mark.parametrize(("layer", "modules"), [(0, 0), (1, 3), (2, 6)])
def test_fine_tuning_starts_behind_the_chosen_layer_of_the_head(layer, modules):
    first, second = method("pretrain"), method("finetune", finetune_from=layer)
    assert len(second.network.neck) == modules
    second.inherit(first)
    first.eval(), second.eval()
    images = batch(1).views["global"][0]
    middle = nn.Sequential(*list(first.branch.head)[:modules])(first.branch.backbone(images).pooled_BD)
    assert torch.equal(second.classify(images), second.network.linear(middle))
    loss = second.train()(batch(1, labels=torch.arange(8) % 3), T).loss
    assert torch.isfinite(loss) and loss.item() == pytest.approx(torch.log(torch.tensor(3.0)).item(), abs=0.3)


def test_the_teacher_has_no_gradient_no_dropout_and_keeps_its_statistics(chain):
    _, second, third = chain
    before = {k: v.clone() for k, v in third.teacher.state_dict().items()}
    third.train()
    assert not any(m.training for m in third.teacher.modules())
    third(batch(1), T).loss.backward()
    assert all(p.grad is None for p in third.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in third.teacher.state_dict().items())
    assert all(torch.equal(v, before[k]) for k, v in second.network.state_dict().items())
    assert {n.split(".")[0] for g in third.param_groups() for n in g.names} == {"network"}
    assert third.encoder is third.network.backbone and third.encoder is not third.teacher.backbone


def test_distillation_is_equation_2_and_with_labels_equation_3(chain):
    _, second, third = chain
    data = batch(1, labels=torch.tensor([0, 1, 2, -1, -1, -1, -1, -1]))
    images = data.views["global"][0]
    loss = third(data, T).loss
    target = torch.softmax(second.eval().network(images) / 0.1, 1)
    student = third.network(images)
    expected = 0.01 * -(target * torch.log_softmax(student / 0.1, 1)).sum(1).mean()
    assert torch.allclose(loss, expected, rtol=1e-5)
    mixed = method("distill", alpha=0.25)
    mixed.inherit(second)
    student = mixed.network(images)
    expected = 0.25 * 0.01 * -(target * torch.log_softmax(student / 0.1, 1)).sum(1).mean()
    expected = expected + 0.75 * F.cross_entropy(student[:3], data.labels_B[:3], reduction="sum") / 8
    assert torch.allclose(mixed(data, T).loss, expected, rtol=1e-5)
    with pytest.raises(ConfigError, match="images have none"):
        mixed(batch(1), T)


def test_a_student_may_be_smaller(chain):
    _, second, _ = chain
    student = method("distill", width=16)
    student.inherit(second)
    assert student.encoder.embed_dim == 16
    out = student(batch(1, labels=torch.arange(8) % 3), T)
    assert torch.isfinite(out.loss) and set(out.metrics) == {"simclr_v2/agreement", "simclr_v2/accuracy"}


def test_the_classifier_decays_without_adaptation():
    groups = {g.name: g for g in method("finetune").param_groups()}
    assert groups["classifier"].decay and not groups["classifier"].adapt
    assert groups["decay"].adapt and "network.linear.weight" not in groups["decay"].names
    assert "classifier" not in {g.name for g in method("pretrain").param_groups()}


def test_wrong_orders_and_shapes_are_refused(chain):
    first, second, third = chain
    with pytest.raises(ConfigError, match="order is pretrain, finetune, distill"):
        method("distill").inherit(first)
    with pytest.raises(ConfigError, match="order is pretrain"):
        method("pretrain").inherit(second)
    with pytest.raises(ConfigError, match="must be equal"):
        method("finetune", width=16).inherit(first)
    with pytest.raises(ConfigError, match="3 classes"):
        method("distill", classes=4).inherit(second)
    with pytest.raises(ConfigError, match="own earlier stages"):
        method("finetune").inherit(SimCLR(SimCLRConfig(), encoder()))
    with pytest.raises(ConfigError, match="needs the fine-tuned network"):
        method("distill")(batch(1), T)
    with pytest.raises(ConfigError, match="number of classes is not known"):
        method("finetune", classes=0)


@pytest.mark.parametrize("bad", [{"finetune_from": 3}, {"alpha": 1.5}, {"memory": 3}])
def test_settings_are_checked(bad):
    with pytest.raises(ConfigError):
        SimCLRv2Config(**bad)


def test_paper_rates():
    pretrain, finetune, distill = stages_of("simclr_v2/paper")
    assert pretrain.optim.lr.peak(4096) == pytest.approx(6.4)
    assert finetune.optim.lr.peak(1024) == pytest.approx(0.16)
    assert finetune.optim.weight_decay(T) == 0.0 and pretrain.optim.weight_decay(T) == 1e-4
    assert (pretrain.length.n, finetune.length.n, distill.length.n) == (800, 60, 400)
    assert stages_of("simclr_v2/paper_10")[1].length.n == 30
    assert stages_of("simclr_v2/paper_sk")[1].optim.lr.peak(1024) == pytest.approx(0.064)
    small = stages_of("simclr_v2/paper_small_student")
    assert [s.encoder.name for s in small] == ["resnet152", "resnet152", "resnet50"]
