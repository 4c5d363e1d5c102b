"""DeiT: the token, its classifier and the two terms, the frozen teacher, and what becomes of the images."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from imprint.backbones.build import build_encoder
from imprint.backbones.load import load_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress, Steps
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch, Normalise
from imprint.methods.deit import DeiT, DeiTConfig
from imprint.methods.rotation import Rotation, RotationConfig
from imprint.recipes.book import recipe, stages_of
from imprint.train.entry import pretrain_run
from imprint.train.optim import build_optimizer

T = Progress(3, 10, 5)
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "repeats": 1, "smoothing": 0.0}


def vit(name="deit_tiny_distilled_patch16_224", **changes):
    arch = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    return build_encoder(name, image_size=32, patch_size=8, arch=arch, **changes)


def cnn():
    config = stages_of("deit/debug")[0].encoder
    return build_encoder(config.name, image_size=32, stem="cifar", arch=config.arch)


def make(encoder=None, classes=5, **changes):
    torch.manual_seed(0)
    return DeiT(DeiTConfig(classes=classes, **{**PLAIN, **changes}), encoder or vit())


def taught(teacher=None, **changes):
    """A student of a CNN with random weights."""
    student = make(**changes)
    student.inherit(teacher or make(cnn(), distillation="none"))
    return student


def batch_of(count=8, copies=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(copies, count, 3, 32, 32, generator=generator)
    return Batch(views={"global": views}, index_B=torch.arange(count), labels_B=torch.arange(count) % 5)


def test_defaults_are_the_papers():
    cfg, run = DeiTConfig(), recipe("deit/paper")
    assert (cfg.distillation, cfg.alpha, cfg.smoothing, cfg.mixup, cfg.cutmix, cfg.erasing) == (
        "hard",
        0.5,
        0.1,
        0.8,
        1,
        0.25,
    )
    (view,) = DeiT.views(cfg, 224)
    assert view.count == 3 and view.crop.interpolation == "bicubic" and view.look.flip == 0.5
    operations = view.look.operations
    assert (operations.magnitude, operations.spread, operations.number) == (9.0, 0.5, 2) and view.look.jitter == 0
    assert run.method.teacher == "timm:regnety_160.deit_in1k" and run.encoder.drop_path == 0.1
    crops, rate = run.batch_size * cfg.repeats, run.optim.lr.peak(run.batch_size)
    assert crops == 1032 and rate == pytest.approx(5e-4 * crops / 512, rel=0.01) and run.optim.lr.floor == 1e-5
    assert run.length.n * cfg.repeats == 300 and run.optim.weight_decay.start == 0.05


def test_the_token_is_second_has_its_own_position_and_reaches_the_second_classifier_only_through_the_blocks():
    method, images = taught().eval(), batch_of().views["global"][0]
    model = method.backbone.model
    assert method.backbone.registers == 1 and model.pos_embed.shape[1] == 16 + 2
    seen = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    features = method.backbone(images)
    handle.remove()
    expected = model.dist_token[0, 0] + model.pos_embed[0, 1]
    torch.testing.assert_close(seen[0][:, 1], expected.expand(8, -1))
    torch.testing.assert_close(seen[0][:, 0], (model.cls_token[0, 0] + model.pos_embed[0, 0]).expand(8, -1))
    own, distilled = method._logits(images)
    torch.testing.assert_close(own, method.head(features.cls_BD))
    torch.testing.assert_close(distilled, method.head_dist(features.registers_BRD[:, 0]))


def test_both_classifiers_are_averaged_and_the_second_counts_one_half():
    method, images = taught().eval(), batch_of().views["global"][0]
    before = method.classify(images)
    own, distilled = method._logits(images)
    torch.testing.assert_close(before, (own + distilled) / 2)
    with torch.no_grad():
        method.head_dist.bias += 1.0
    torch.testing.assert_close(method.classify(images), before + 0.5)
    torch.testing.assert_close(method._logits(images)[0], own)  # and the other one does not notice


@pytest.mark.parametrize(("alpha", "still", "moved"), [(1.0, "head", "head_dist"), (0.0, "head_dist", "head")])
def test_each_term_reaches_its_own_classifier_and_the_trunk(alpha, still, moved):
    method = taught(alpha=alpha)
    method(batch_of(), T).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in getattr(method, still).parameters())
    assert all(p.grad.any() for p in getattr(method, moved).parameters())
    model = method.backbone.model
    assert model.blocks[0].attn.qkv.weight.grad.any() and model.patch_embed.proj.weight.grad.any()
    assert model.dist_token.grad.any()  # through attention, where its own classifier does not listen
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


def test_hard_and_soft_losses_are_the_equations():
    batch = batch_of()
    images, labels = batch.views["global"][0], batch.labels_B
    for kind, alpha, tau in (("hard", 0.5, 1.0), ("soft", 0.1, 3.0)):
        method = taught(distillation=kind, alpha=alpha, temperature=tau)
        own, distilled = method._logits(images)
        said = method.teacher.classify(images)
        if kind == "hard":
            term = F.cross_entropy(distilled, said.argmax(1))
        else:
            log_p, log_q = ((x / tau).log_softmax(1) for x in (distilled, said))
            term = F.kl_div(log_p, log_q, reduction="sum", log_target=True) * tau**2 / distilled.numel()
        expected = (1 - alpha) * F.cross_entropy(own, labels) + alpha * term
        out = method(batch, T)
        torch.testing.assert_close(out.loss, expected)
        assert float(out.metrics["deit/agreement"]) == float((distilled.argmax(1) == said.argmax(1)).float().mean())
        assert float(out.metrics["deit/accuracy"]) == float((own.argmax(1) == labels).float().mean())
    images_mean = taught(distillation="soft", alpha=1.0, soft_mean="images")(batch, T).loss
    torch.testing.assert_close(images_mean, 5 * taught(distillation="soft", alpha=1.0)(batch, T).loss)


def test_soft_gradients_keep_their_size_when_the_temperature_grows():
    sizes = []
    for temperature in (20.0, 200.0):
        method = taught(distillation="soft", alpha=1.0, temperature=temperature, soft_mean="images")
        method(batch_of(), T).loss.backward()
        sizes.append(method.head_dist.weight.grad.norm())
    assert float(sizes[1] / sizes[0]) == pytest.approx(1.0, rel=0.05) and sizes[0] > 1e-3


def test_the_teacher_sees_the_very_tensor_of_the_student_and_stays_in_evaluation_mode():
    method = taught(mixup=0.8, cutmix=1.0, erasing=0.9, repeats=2).train()
    seen = {}
    method.teacher.backbone.register_forward_pre_hook(
        lambda module, args: seen.update(teacher=args[0], mode=module.training)
    )
    method.backbone.register_forward_pre_hook(lambda _, args: seen.update(student=args[0]))
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    batch = batch_of(copies=2)
    method(batch, T)
    assert seen["teacher"] is seen["student"] and seen["mode"] is False
    assert not torch.equal(seen["student"], batch.views["global"].flatten(0, 1))
    assert method.training and not any(m.training for m in method.teacher.modules())
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())


def test_what_becomes_of_an_image_depends_on_its_sample_and_the_step_and_its_partner_is_its_neighbour():
    method = make(mixup=0.8, cutmix=1.0, erasing=0.5, repeats=2, smoothing=0.1)
    batch = batch_of(count=8, copies=2)
    images, targets = method._augmented(batch, T)
    for start in (0, 4):  # two processes
        part, wanted = method._augmented(batch.part(start, start + 4), T)
        torch.testing.assert_close(part, images.view(2, 8, 3, 32, 32)[:, start : start + 4].flatten(0, 1))
        torch.testing.assert_close(wanted, targets.view(2, 8, 5)[:, start : start + 4].flatten(0, 1))
    torch.testing.assert_close(targets.sum(1), torch.ones(16))
    assert not torch.equal(method._augmented(batch, Progress(4, 10, 5))[0], images)
    own, partner = targets.view(2, 4, 2, 5).unbind(2)
    share = (own - 0.02).gather(2, batch.labels_B.view(4, 2)[None, :, :1].expand(2, -1, -1)) / 0.9
    expected = share * F.one_hot(batch.labels_B.view(4, 2)[:, 0], 5) + (1 - share) * F.one_hot(
        batch.labels_B.view(4, 2)[:, 1], 5
    )
    torch.testing.assert_close(own, 0.9 * expected + 0.02)
    assert partner.shape == own.shape


def test_over_the_steps_both_ways_of_mixing_come_equally_often_at_the_stated_shares():
    method = make(mixup=0.8, cutmix=1.0)
    views = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])[None]
    batch = Batch(views={"global": views}, index_B=torch.arange(2), labels_B=torch.tensor([0, 1]))
    cut, shares = [], []
    for step in range(300):
        images, targets = method._augmented(batch, Progress(step, 300, 5))
        shares.append(float(targets[0, 0]))
        assert float(1 - images[0].mean()) == pytest.approx(shares[-1], abs=1e-5)  # targets are mixed as pixels are
        cut.append(bool(((images[0] == 0) | (images[0] == 1)).all()))
    assert 0.4 < np.mean(cut) < 0.6 and 0.42 < np.mean(shares) < 0.68 and np.std(shares) > 0.2


def test_images_without_a_label_are_taught_by_the_teacher_only():
    method, batch = taught(), batch_of(4)
    labels = torch.tensor([0, 1, -1, -1])
    out = method(dataclasses.replace(batch, labels_B=labels), T)
    own, distilled = method._logits(batch.views["global"][0])
    said = method.teacher.classify(batch.views["global"][0]).argmax(1)
    supervised = F.cross_entropy(own[:2], labels[:2]) / 2
    torch.testing.assert_close(out.loss, 0.5 * supervised + 0.5 * F.cross_entropy(distilled, said))
    assert float(out.metrics["deit/accuracy"]) == float((own[:2].argmax(1) == labels[:2]).float().mean())


def test_without_a_teacher_any_encoder_is_trained_from_labels():
    for encoder in (cnn(), vit("vit_tiny_patch16_224"), vit()):
        method = make(encoder, distillation="none")
        out = method(batch_of(), T)
        logits = method.head(encoder(batch_of().views["global"][0]).pooled_BD)
        torch.testing.assert_close(out.loss, F.cross_entropy(logits, batch_of().labels_B))
        assert method.head_dist is None and method.lacks() is None and "deit/agreement" not in out.metrics
        torch.testing.assert_close(method.classify(batch_of().views["global"][0]), logits)


def test_a_vit_with_a_register_is_taught_through_it_and_others_are_refused():
    method = taught(encoder=vit("vit_tiny_patch16_224", registers=1))
    images = batch_of().views["global"][0]
    features = method.backbone(images)
    own, distilled = method._logits(images)
    torch.testing.assert_close(own, method.head(features.cls_BD))
    torch.testing.assert_close(distilled, method.head_dist(features.registers_BRD[:, 0]))
    for encoder in (vit("vit_tiny_patch16_224"), cnn()):
        with pytest.raises(ConfigError, match=r"--encoder.registers 1.*distill"):
            make(encoder)


def test_a_teacher_must_exist_classify_and_know_the_same_classes():
    assert "--method.teacher" in make().lacks() and taught().lacks() is None
    with pytest.raises(ConfigError, match="no classifier"):
        taught(teacher=Rotation(RotationConfig(), cnn()))
    with pytest.raises(ConfigError, match=r"knows 3 classes and the student shall know 5"):
        taught(teacher=make(cnn(), classes=3, distillation="none"))
    with pytest.raises(ConfigError, match="number of classes"):
        make(classes=0)
    for wrong in ({"alpha": 2.0}, {"mixup": -1.0}, {"repeats": 0}, {"teacher_weights": "x"}):
        with pytest.raises(ConfigError):
            make(**wrong)
    with pytest.raises(ConfigError, match="listens to none"):
        make(distillation="none", teacher="timm:resnet18")


def test_a_named_teacher_comes_with_its_weights_and_sees_images_its_own_way(tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=5).eval()
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    method = make(teacher="timm:resnet10t", teacher_weights=str(tmp_path / "teacher.pth"))
    method.normalised_by(Normalise((0.5,) * 3, (0.25,) * 3))
    pixels = torch.rand(4, 3, 32, 32)
    known = network.pretrained_cfg
    mean, std = (torch.tensor(known[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(
            method._taught((pixels - 0.5) / 0.25), network((pixels - mean) / std), rtol=1e-3, atol=1e-4
        )
    assert method.lacks() is None
    # A run to start from then gives the weights.
    previous = taught()
    with torch.no_grad():
        previous.head_dist.bias.fill_(3.0)
    method.inherit(previous)
    assert torch.equal(method.head_dist.bias, previous.head_dist.bias)
    for name, value in previous.backbone.state_dict().items():
        assert torch.equal(value, method.backbone.state_dict()[name]), name


def test_finetuning_at_a_larger_size_goes_on_from_resized_positions():
    previous = taught()
    larger = build_encoder(
        "deit_tiny_distilled_patch16_224",
        image_size=48,
        patch_size=8,
        arch={"embed_dim": 32, "depth": 2, "num_heads": 2},
    )
    method = make(larger, distillation="none")
    method.inherit(previous)
    assert method.backbone.model.pos_embed.shape[1] == 36 + 2
    torch.testing.assert_close(method.backbone.model.pos_embed[:, :2], previous.backbone.model.pos_embed[:, :2])
    torch.testing.assert_close(method.head.weight, previous.head.weight)


def test_tokens_and_positions_take_no_weight_decay_and_the_teacher_no_step():
    method = taught()
    optimizer = build_optimizer(method.param_groups(), recipe("deit/paper").optim, torch.device("cpu"))
    names = {g.name: set(g.names) for g in method.param_groups()}
    model = "backbone.model."
    assert {f"{model}dist_token", f"{model}cls_token", f"{model}pos_embed", "head_dist.bias"} <= names["no_decay"]
    assert {"head.weight", "head_dist.weight"} <= names["decay"]
    trained = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert not trained & {id(p) for p in method.teacher.parameters()}


def test_the_exported_student_keeps_its_token(tmp_path):
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (48, 32, 32, 3), dtype=np.uint8), np.arange(48) % 3)
    stages = tuple(dataclasses.replace(s, length=Steps(1), workers=1, device="cpu") for s in stages_of("deit/debug"))
    run = pretrain_run(stages, tmp_path / "run", source=source)
    encoder = load_encoder(str(run.path))
    features = encoder(torch.zeros(2, 3, 32, 32))
    assert encoder.registers == 1 and features.registers_BRD.shape == (2, 1, 32)
    assert isinstance(encoder.model.head, nn.Identity) and torch.isfinite(features.pooled_BD).all()
