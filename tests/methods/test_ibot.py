import dataclasses
import math

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress, Steps
from imprint.data.batch import Batch, Normalise
from imprint.losses.distillation import cross_view_cross_entropy
from imprint.methods.ibot import IBOT, IBOTConfig
from imprint.recipes.book import recipe

T = Progress(0, 100, 5)


def make(drop_path: float = 0.0, name: str = "vit_tiny_patch16_224", **changes) -> IBOT:
    torch.manual_seed(0)
    config = recipe("ibot/debug")
    arch = config.encoder.arch
    if name.startswith("swin"):
        arch = Arch(embed_dim=16, layers=(1, 1), heads=(1, 2), window=4)
    patch = 4 if name.startswith("swin") else 8
    encoder = build_encoder(name, image_size=32, patch_size=patch, drop_path=drop_path, arch=arch)
    return IBOT(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count: int = 4, share: float = 0.4) -> Batch:
    torch.manual_seed(1)
    views = {"global": torch.randn(2, count, 3, 32, 32), "local": torch.randn(2, count, 3, 16, 16)}
    mask = torch.rand(2, count, 16) < share
    mask[0, 1] = False  # an image that stays whole
    batch = Batch(views=views, masks={"global": mask}, index_B=torch.arange(count))
    return batch.prepared(torch.device("cpu"), Normalise())


def test_defaults_are_the_papers():
    cfg = IBOTConfig()
    assert (cfg.prototypes, cfg.hidden, cfg.bottleneck, cfg.heads) == (8192, 2048, 256, "shared")
    assert (cfg.cls_weight, cfg.patch_weight, cfg.student_temp, cfg.mask_start) == (1.0, 1.0, 0.1, Epochs(0))
    run = Progress(0, 1000, 10)
    for temp in (cfg.teacher_temp, cfg.patch_teacher_temp):
        assert temp(run) == 0.04 and temp(run.at(400)) == 0.07
    views = {v.name: v for v in IBOT.views(cfg, 224)}
    assert (views["global"].count, views["global"].crop.size, views["global"].crop.scale) == (2, 224, (0.25, 1.0))
    assert (views["local"].count, views["local"].crop.size, views["local"].crop.scale) == (10, 96, (0.05, 0.25))
    (mask,) = IBOT.masks(cfg, 224, 16)
    assert (mask.count, mask.grid, mask.shares, mask.shape) == (2, (14, 14), ((0.0, 0.0), (0.3, 0.2)), "block")


def test_the_loss_is_the_equation_over_all_patches():
    """The naive form: all patch logits of both, the mean over masked ones of each crop, then over crops."""
    method, batch = make().double(), batch_of().map(lambda x: x.double() if x.is_floating_point() else x)
    method.center.value.normal_()
    method.patch_center.value.normal_()
    out = method.eval()(batch, T)
    flat, mask = batch.views["global"].flatten(0, 1), batch.masks["global"].flatten(0, 1)
    with torch.no_grad():
        student, teacher = method.student, method.teacher
        seen, local = student.backbone(flat, mask_BN=mask), student.backbone(batch.views["local"].flatten(0, 1))
        whole = teacher.backbone(flat)
        s = student.head(torch.cat([seen.cls_BD, local.cls_BD])).unflatten(0, (4, 4))
        t = teacher.head(whole.cls_BD).unflatten(0, (2, 4))
        across = cross_view_cross_entropy(s, t, method.center.value, 0.1, 0.04)
        log_p = torch.log_softmax(student.head(seen.patches_BND) / 0.1, -1)
        target = torch.softmax((teacher.head(whole.patches_BND) - method.patch_center.value) / 0.04, -1)
        per_patch = -(target * log_p).sum(-1) * mask
        within = (per_patch.sum(1) / mask.sum(1).clamp(min=1)).mean()
    torch.testing.assert_close(out.loss, across + within, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.metrics["ibot/cls_loss"], across, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.metrics["ibot/patch_loss"], within, rtol=1e-9, atol=0)
    weighted = dataclasses.replace(method.cfg, cls_weight=0.5, patch_weight=2.0)
    method.cfg = weighted
    torch.testing.assert_close(method(batch, T).loss, 0.5 * across + 2 * within, rtol=1e-9, atol=0)


def test_both_centres_move_after_use_and_the_patch_centre_over_all_patches():
    method, batch = make(), batch_of()
    method.eval()
    method(batch, T)
    assert method.center.value.abs().max() == 0 and method.patch_center.value.abs().max() == 0
    with torch.no_grad():
        whole = method.teacher.backbone(batch.views["global"].flatten(0, 1))
        cls = 0.1 * method.teacher.head(whole.cls_BD).mean(0)
        patch = 0.1 * method.teacher.head(whole.patches_BND).mean((0, 1))  # every patch, not the masked ones
    method.train()(batch, T)
    torch.testing.assert_close(method.center.value, cls)
    torch.testing.assert_close(method.patch_center.value, patch, rtol=1e-4, atol=1e-6)


def test_only_the_student_is_masked_and_only_in_large_crops(monkeypatch):
    method, batch = make(), batch_of()
    seen: dict[str, list] = {"student": [], "teacher": []}
    many, plain = method.student.backbone.encode_many, method.teacher.backbone.forward

    def encode_many(images, masks):
        seen["student"] += [(len(x), m) for x, m in zip(images, masks, strict=True)]
        return many(images, masks)

    def forward(images, mask_BN=None, keep_BM=None):
        seen["teacher"].append((len(images), mask_BN))
        return plain(images, mask_BN, keep_BM)

    monkeypatch.setattr(method.student.backbone, "encode_many", encode_many)
    monkeypatch.setattr(method.teacher.backbone, "forward", forward)
    method(batch, T).loss.backward()
    (large, mask), (small, none) = seen["student"]
    assert (large, small) == (8, 8) and none is None and torch.equal(mask, batch.masks["global"].flatten(0, 1))
    assert seen["teacher"] == [(8, None)]
    assert method.student.backbone.mask_token.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("heads", ["shared", "semi", "separate"])
def test_heads_share_as_much_as_asked(heads):
    method = make(heads=heads)
    network = method.student
    apart = {
        "shared": 0,
        "semi": 24 * 16,
        "separate": sum(p.numel() for p in network.head.mlp.parameters()) + 24 * 16,
    }[heads]
    heads_in_all = sum(p.numel() for n, p in network.named_parameters() if "backbone" not in n and p.requires_grad)
    one = sum(p.numel() for p in network.head.parameters() if p.requires_grad)
    assert heads_in_all - one == apart
    assert method.patch_center.value.numel() == (32 if heads == "shared" else 24)
    method(batch_of(), T).loss.backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    method.before_optimizer_step(T)  # both last layers are frozen for two steps
    assert network.head.prototypes.direction.grad is None and network.patch_layer.direction.grad is None
    assert network.head.mlp[0].weight.grad is not None


def test_no_mask_in_the_batch_gives_the_class_term_alone():
    method = make()
    out = method(batch_of(share=0.0), T)
    assert out.metrics["ibot/patch_loss"] == 0 and torch.isfinite(out.loss)
    out.loss.backward()
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)


def test_masks_and_the_patch_temperature_wait_for_their_start():
    method, batch = make(mask_start=Epochs(2)), batch_of()
    assert method(batch, T.at(9)).metrics["ibot/patch_loss"] == 0
    assert method(batch, T.at(10)).metrics["ibot/patch_loss"] > 0
    cfg = dataclasses.replace(method.cfg, patch_teacher_temp=IBOTConfig().patch_teacher_temp)
    method.cfg = cfg
    seen = []
    method._patch_entropy = lambda unit, temperature: seen.append(temperature) or torch.zeros(())
    for epoch in (0, 2, 12, 31):
        method(batch, Progress(5 * epoch, 1000, 5))
    step = 0.03 / 29
    assert seen == pytest.approx([0.04, 0.04, 0.04 + 10 * step, 0.07])


def test_swin_serves_and_cnns_are_refused():
    method, batch = make(name="swin_tiny_patch4_window7_224"), batch_of()
    assert method.encoder.patch_size == 8
    method(batch, T).loss.backward()
    assert method.student.backbone.mask_token.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="dino"):
        IBOT(IBOTConfig(), build_encoder("resnet18", image_size=32))


def test_teacher_follows_and_is_the_encoder():
    method = make(drop_path=0.5)
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(method.teacher.backbone(x).cls_BD, method.teacher.backbone(x).cls_BD)
    assert method.encoder is method.teacher.backbone
    before = method.teacher.backbone.mask_token.clone()
    with torch.no_grad():
        method.student.backbone.mask_token.add_(1.0)
    method.after_optimizer_step(T)
    moved = method.teacher.backbone.mask_token - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.996), atol=1e-6, rtol=1e-4)


def test_metrics_are_in_nats_and_dangers_name_blunt_teachers():
    method = make()
    metrics = method(batch_of(), T).metrics
    assert 0 <= metrics["ibot/teacher_entropy"] <= math.log(32)
    assert 0 <= metrics["ibot/patch_teacher_entropy"] <= math.log(32)
    assert metrics["ibot/kl"] > 0
    assert IBOT.dangers(IBOTConfig()) == ()
    blunt = dataclasses.replace(IBOTConfig().teacher_temp, start=0.1)
    assert "sharper" in IBOT.dangers(IBOTConfig(patch_teacher_temp=blunt))[0]
    assert method.cfg.freeze_prototypes == Steps(2)
