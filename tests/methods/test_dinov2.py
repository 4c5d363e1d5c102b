import dataclasses

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.encoder import Encoder
from imprint.backbones.layer_decay import layer_scales
from imprint.core.errors import ConfigError
from imprint.core.progress import Epochs, Progress, Steps
from imprint.data.batch import Batch, Normalise
from imprint.losses.distillation import centred_softmax
from imprint.methods.dinov2 import DINOv2, DINOv2Config
from imprint.nn import crop_distillation
from imprint.recipes import dinov2 as recipes
from imprint.recipes.book import recipe, stages_of
from imprint.train.optim import build_optimizer

NOW = Progress(5, 100, 10)


def make(size=32, drop_path=0.0, **changes):
    torch.manual_seed(0)
    config = recipe("dinov2/debug")
    encoder = build_encoder(
        config.encoder.name, image_size=size, patch_size=8, drop_path=drop_path, arch=config.encoder.arch
    )
    return DINOv2(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=4, masked=((0, 3, 5), (7,), (), (1, 2)), size=32):
    """Two large and two small crops; the masks of the first large crop are given, the second one's images are whole."""
    generator = torch.Generator().manual_seed(1)
    views = {
        "global": torch.randn(2, count, 3, size, size, generator=generator),
        "local": torch.randn(2, count, 3, 16, 16, generator=generator),
    }
    masks = torch.zeros(2, count, (size // 8) ** 2, dtype=torch.bool)
    for image, places in enumerate(masked):
        masks[0, image, list(places)] = True
    batch = Batch(views=views, masks={"global": masks}, index_B=torch.arange(count))
    return batch.prepared(torch.device("cpu"), Normalise())


def test_defaults_are_the_papers():
    cfg = DINOv2Config()
    assert (cfg.prototypes, cfg.patch_prototypes, cfg.bottleneck, cfg.patch_bottleneck) == (131_072, 131_072, 384, 256)
    assert (cfg.centring, cfg.sinkhorn_iterations, cfg.koleo_weight, cfg.patch_weight) == ("sinkhorn", 3, 0.1, 1.0)
    assert (cfg.mask_probability, cfg.mask_share, cfg.freeze_prototypes) == (0.5, (0.1, 0.5), Epochs(1))
    run = Progress(0, 1000, 10)
    assert cfg.teacher_temp(run) == 0.04 and cfg.teacher_temp(run.at(300)) == 0.07
    assert cfg.momentum(run) == 0.994 and cfg.momentum(run.at(1000)) == 1.0
    views = {v.name: v for v in DINOv2.views(cfg, 224)}
    assert (views["global"].count, views["global"].crop.size, views["global"].crop.scale) == (2, 224, (0.32, 1.0))
    assert (views["local"].count, views["local"].crop.size, views["local"].crop.scale) == (8, 98, (0.05, 0.32))
    (mask,) = DINOv2.masks(cfg, 224, 14)
    assert (mask.count, mask.grid, mask.low, mask.high, mask.probability) == (2, (16, 16), 0.1, 0.5, 0.5)


def test_papers_recipes_are_the_public_configurations():
    short, giant = recipe("dinov2/paper"), recipe("dinov2/paper_vit_giant")
    assert short.optim.lr.peak(2048) == pytest.approx(4e-3 * 2**0.5) and giant.optim.lr.peak(1024) == 2e-4
    assert (short.optim.layer_decay, giant.optim.layer_decay) == (0.9, 1.0)
    assert (short.encoder.drop_path, giant.encoder.drop_path) == (0.3, 0.4)
    clock = Progress(0, short.length.n, 626)
    assert short.optim.weight_decay(clock) == pytest.approx(0.04)
    assert short.optim.weight_decay(clock.at(clock.total_steps)) == pytest.approx(0.4)
    assert short.method.shared_head and short.method.centring == "mean"
    assert not giant.method.shared_head and giant.method.centring == "sinkhorn"
    assert recipe("dinov2/paper_registers").encoder.registers == 4
    before, after = stages_of("dinov2/paper_high_resolution")
    assert (after.start, after.encoder.image_size, after.length) == ("../stage-1", 518, Steps(10_000))
    assert after.optim.lr.base < before.optim.lr.base
    distilled = recipe("dinov2/paper_distill")
    assert distilled.method.teacher_mode == "frozen" and distilled.encoder.drop_path == 0


def test_only_masked_patches_reach_the_patch_head():
    method, batch = make(), batch_of()
    seen = {}
    for name, net in (("student", method), ("teacher", method.average)):
        net.patch_head.mlp.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0].detach()}))
    method(batch, NOW)
    places = batch.places["global"]
    assert seen["student"].shape == seen["teacher"].shape == (6, 32)
    large = batch.views["global"].flatten(0, 1)
    whole = method.average.backbone(large).patches_BND.flatten(0, 1)[places]
    torch.testing.assert_close(seen["teacher"], whole)  # the teacher sees the crops without masks
    hidden = method.backbone(large, batch.masks["global"].flatten(0, 1)).patches_BND.flatten(0, 1)[places]
    torch.testing.assert_close(seen["student"], hidden, rtol=1e-4, atol=1e-5)
    assert (whole - hidden).abs().max() > 1e-3


def test_packed_crops_equal_separate_ones(monkeypatch):
    packed, apart, batch = make(), make(), batch_of()
    one = packed(batch, NOW)
    one.loss.backward()
    monkeypatch.setattr(type(apart.backbone), "encode_many", Encoder.encode_many)
    two = apart(batch, NOW)
    two.loss.backward()
    torch.testing.assert_close(one.loss, two.loss)
    for (name, a), (_, b) in zip(packed.named_parameters(), apart.named_parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_loss_is_the_sum_of_its_terms_and_switches_take_terms_away():
    batch = batch_of()
    whole = make()(batch, NOW)
    m = {name: value.item() for name, value in whole.metrics.items()}
    terms = m["dinov2/image_loss"] + m["dinov2/patch_loss"] + 0.1 * 2 * m["dinov2/koleo"]
    assert whole.loss.item() == pytest.approx(terms, rel=1e-5)
    plain = make(patch_weight=0.0, koleo_weight=0.0)
    assert plain.patch_head is None and plain.backbone.mask_token is None
    assert DINOv2.masks(plain.cfg, 32, 8) == ()
    out = plain(dataclasses.replace(batch, masks={}, places={}), NOW)
    assert out.loss.item() == pytest.approx(out.metrics["dinov2/image_loss"].item())
    assert make(shared_head=True).patch_head is None


def test_the_average_takes_no_gradient_drops_nothing_and_follows():
    method = make(drop_path=0.5)
    assert not any(getattr(m, "drop_prob", 0.0) for m in method.average.modules())
    assert any(getattr(m, "drop_prob", 0.0) for m in method.backbone.modules())
    method(batch_of(), NOW).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.average.parameters())
    before = method.average.image_head.mlp[0].weight.clone()
    with torch.no_grad():
        for parameter in method.image_head.parameters():
            parameter.add_(1.0)
    method.after_optimizer_step(NOW)
    m = method.cfg.momentum(NOW)
    torch.testing.assert_close(
        method.average.image_head.mlp[0].weight, m * before + (1 - m) * method.image_head.mlp[0].weight
    )
    assert method.encoder is method.average.backbone


def test_running_means_centre_by_the_past_and_patches_by_the_masked_ones():
    method, batch = make(centring="mean"), batch_of()
    large = batch.views["global"].flatten(0, 1)
    with torch.no_grad():
        seen = method.average.backbone(large)
        image = method.average.image_head(seen.cls_BD)
        patch = method.average.patch_head(seen.patches_BND.flatten(0, 1)[batch.places["global"]])
    first = method(batch, NOW)
    torch.testing.assert_close(method.centres.image.value, 0.1 * image.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(method.centres.patch.value, 0.1 * patch.mean(0), rtol=1e-4, atol=1e-6)
    uncentred = centred_softmax(image, torch.zeros(32), method.cfg.teacher_temp(NOW))
    entropy = torch.special.entr(uncentred).sum(-1).mean()
    torch.testing.assert_close(first.metrics["dinov2/teacher_entropy"], entropy, rtol=1e-4, atol=1e-5)


def test_balanced_targets_are_the_same_whether_held_or_streamed(monkeypatch):
    held, streamed, batch = make(), make(), batch_of()
    one = held(batch, NOW)
    one.loss.backward()
    monkeypatch.setattr(crop_distillation, "_HELD", 0)
    two = streamed(batch, NOW)
    two.loss.backward()
    torch.testing.assert_close(one.loss, two.loss)
    for a, b in zip(held.patch_head.parameters(), streamed.patch_head.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


def test_registers_are_learned_and_are_no_patches():
    assert recipe("dinov2/small_registers").encoder.registers == 4
    torch.manual_seed(0)
    config = recipe("dinov2/debug")
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, registers=4, arch=config.encoder.arch)
    method = DINOv2(config.method, encoder)
    out = method(batch_of(), NOW)
    out.loss.backward()
    assert encoder.model.reg_token.grad.abs().sum() > 0
    features = method.encoder(torch.zeros(1, 3, 32, 32))
    assert features.registers_BRD.shape == (1, 4, 32) and features.patches_BND.shape == (1, 16, 32)


def test_a_batch_without_masked_patches_is_fine():
    for centring in ("sinkhorn", "mean"):
        method = make(centring=centring)
        out = method(batch_of(masked=()), NOW)
        out.loss.backward()
        assert torch.isfinite(out.loss) and out.metrics["dinov2/patch_loss"].item() == 0.0
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
        assert all(torch.isfinite(b).all() for b in method.buffers())


def test_prototypes_rest_at_first():
    method = make()
    method(batch_of(), NOW).loss.backward()
    heads = (method.image_head, method.patch_head)
    method.before_optimizer_step(Progress(2, 100, 10))
    assert all(p.grad is not None for h in heads for p in h.prototypes.parameters())
    method.before_optimizer_step(Progress(1, 100, 10))
    assert all(p.grad is None for h in heads for p in h.prototypes.parameters())


def test_each_network_is_clipped_by_itself_and_early_layers_learn_slower():
    method = make()
    groups = method.param_groups()
    names = [name for group in groups for name in group.names]
    assert {name.partition(".")[0] for name in names} == {"backbone", "image_head", "patch_head"}
    assert method.clipping == "module" and len(names) == len(set(names))
    assert set(names) == {name for name, p in method.named_parameters() if p.requires_grad}
    config = dataclasses.replace(recipes.paper().optim, layer_decay=0.9)
    method.cfg = dataclasses.replace(method.cfg, patch_rate=0.2)
    optimizer = build_optimizer(
        method.param_groups(), config, torch.device("cpu"), scales=layer_scales(method, config.layer_decay)
    )
    scale = {name: group["lr_scale"] for group in optimizer.param_groups for name in group["names"]}
    decay = {name: group["decay"] for group in optimizer.param_groups for name in group["names"]}
    assert scale["backbone.model.patch_embed.proj.weight"] == pytest.approx(0.2 * 0.9**3)
    assert scale["backbone.model.pos_embed"] == pytest.approx(0.9**3) and decay["backbone.model.pos_embed"]
    assert scale["backbone.model.blocks.0.mlp.fc1.weight"] == pytest.approx(0.9**2)
    assert scale["backbone.model.blocks.1.mlp.fc1.weight"] == pytest.approx(0.9)
    assert scale["backbone.model.norm.weight"] == scale["image_head.mlp.0.weight"] == 1.0
    assert not decay["backbone.model.blocks.0.ls1.gamma"] and not decay["image_head.mlp.0.bias"]


def test_a_frozen_teacher_stays_and_teaches_every_patch():
    teacher = make()
    torch.manual_seed(3)
    arch = dataclasses.replace(recipe("dinov2/debug").encoder.arch, embed_dim=16)
    small = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch=arch)
    cfg = dataclasses.replace(teacher.cfg, teacher_mode="frozen")
    student = DINOv2(cfg, small)
    batch = dataclasses.replace(batch_of(), masks={}, places={})
    assert DINOv2.masks(cfg, 32, 8) == () and small.mask_token is None
    with pytest.raises(ConfigError, match="--start"):
        student(batch, NOW)
    student.inherit(teacher)
    kept = {name: value.clone() for name, value in student.teacher.state_dict().items()}
    rows = []
    student.patch_head.mlp.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    average = student.encoder.model.blocks[0].mlp.fc1.weight.clone()
    student(batch, NOW).loss.backward()
    optimizer.step()
    student.after_optimizer_step(NOW)
    assert rows == [2 * 4 * 16]
    assert all(torch.equal(value, kept[name]) for name, value in student.teacher.state_dict().items())
    assert kept.keys() == teacher.average.state_dict().keys()
    assert not torch.equal(student.encoder.model.blocks[0].mlp.fc1.weight, average)
    assert student.encoder is student.average.backbone and student.encoder.embed_dim == 16


def test_a_teacher_that_does_not_fit_is_refused():
    student = make(teacher_mode="frozen", prototypes=40)
    with pytest.raises(ConfigError, match="must agree"):
        student.inherit(make())
    with pytest.raises(ConfigError, match="average"):
        make(teacher_mode="frozen").inherit(torch.nn.Linear(2, 2))


def test_masked_patches_only_may_be_distilled():
    student = make(teacher_mode="frozen", distilled_patches="masked")
    student.inherit(make())
    batch, rows = batch_of(), []
    student.patch_head.mlp.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    student(batch, NOW)
    assert rows == [6] and student.backbone.mask_token is None


def test_a_stage_at_another_resolution_goes_on_from_the_weights():
    first, second = make(), make(size=48)
    with torch.no_grad():
        for parameter in (*first.parameters(), *first.average.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    second.inherit(first)
    for mine, its in ((second.backbone, first.backbone), (second.average.backbone, first.average.backbone)):
        assert mine.model.pos_embed.shape[1] > its.model.pos_embed.shape[1]
        assert torch.equal(mine.model.blocks[0].mlp.fc1.weight, its.model.blocks[0].mlp.fc1.weight)
        assert torch.equal(mine.mask_token, its.mask_token)
    assert torch.equal(second.patch_head.prototypes.direction, first.patch_head.prototypes.direction)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        # At the first stage's size both give nearly the same: positions went up and down again.
        a, b = first.backbone.eval()(image).pooled_BD, second.backbone.eval()(image).pooled_BD
    assert torch.nn.functional.cosine_similarity(a, b).item() > 0.97
    out = second(batch_of(size=48), NOW)
    assert torch.isfinite(out.loss)


def test_the_higher_stage_compresses_the_schedules():
    first = dataclasses.replace(recipes.paper_vit_giant(), length=Steps(1000))
    first = dataclasses.replace(
        first, optim=dataclasses.replace(first.optim, lr=dataclasses.replace(first.optim.lr, warmup=Steps(200)))
    )
    stage = recipes.higher(first, 448, Steps(100))
    assert stage.optim.lr.warmup == Steps(20) and stage.length == Steps(100) and stage.encoder.image_size == 448


def test_encoders_without_a_place_for_a_mask_token_are_refused():
    encoder = build_encoder("resnet18", image_size=32, stem="cifar")
    with pytest.raises(ConfigError, match="DINOv2"):
        DINOv2(recipe("dinov2/debug").method, encoder)


def test_dangers_name_missing_safeguards():
    assert DINOv2.dangers(DINOv2Config()) == ()
    without = DINOv2.dangers(DINOv2Config(sinkhorn_iterations=0, koleo_weight=0.0))
    assert len(without) == 2 and all("--method." in line for line in without)
    with pytest.raises(ConfigError, match="mask_share"):
        DINOv2Config(mask_share=(0.5, 0.1))
