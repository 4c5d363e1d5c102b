import dataclasses

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.progress import Epochs, Progress, Steps
from imprint.data.batch import Batch
from imprint.losses.distillation import cross_view_cross_entropy
from imprint.methods.esvit import EsViT, EsViTConfig
from imprint.recipes.book import recipe

T = Progress(0, 100, 5)
SWIN = Arch(embed_dim=16, layers=(1, 1), heads=(1, 2), window=4)


def make(drop_path: float = 0.0, encoder=None, **changes) -> EsViT:
    torch.manual_seed(0)
    config = recipe("esvit/debug")
    encoder = encoder or build_encoder(
        "swin_tiny_patch4_window7_224", image_size=32, patch_size=4, drop_path=drop_path, arch=SWIN
    )
    return EsViT(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count: int = 4) -> Batch:
    torch.manual_seed(1)
    views = {"global": torch.randn(2, count, 3, 32, 32), "local": torch.randn(2, count, 3, 16, 16)}
    return Batch(views=views, index_B=torch.arange(count))


def test_defaults_are_the_papers():
    cfg = EsViTConfig()
    assert (cfg.prototypes, cfg.hidden, cfg.bottleneck, cfg.region_weight) == (65_536, 2048, 256, 0.5)
    assert (cfg.student_temp, cfg.center_momentum, cfg.freeze_prototypes) == (0.1, 0.9, Epochs(1))
    run = Progress(0, 1000, 10)
    assert cfg.teacher_temp(run) == 0.04 and cfg.teacher_temp(run.at(400)) == 0.07
    views = {v.name: v for v in EsViT.views(cfg, 224)}
    assert (views["global"].count, views["global"].crop.size, views["global"].crop.scale) == (2, 224, (0.4, 1.0))
    assert (views["local"].count, views["local"].crop.size, views["local"].crop.scale) == (8, 96, (0.05, 0.4))
    paper, base = recipe("esvit/paper"), recipe("esvit/paper_swin_base")
    assert (paper.batch_size, paper.length, paper.method.train_gain) == (512, Epochs(300), True)
    assert base.encoder.arch.window == 14 and base.method.region_start == Epochs(200)


def test_the_loss_is_half_the_views_and_half_the_matched_regions():
    """The naive form: two loops over views, the similarity of all pairs of regions, targets gathered as a whole."""
    method = make().double().eval()
    batch = batch_of().map(lambda x: x.double() if x.is_floating_point() else x)
    method.center.value.normal_()
    method.region_center.value.normal_()
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(torch.randn_like(p) * 0.01)
        out = method(batch, T)
        student, teacher = method.student, method.teacher
        crops = [*batch.views["global"], *batch.views["local"]]
        seen, whole = [student.backbone(x) for x in crops], [teacher.backbone(x) for x in crops[:2]]
        s = torch.stack([student.view_head(f.pooled_BD) for f in seen])
        t = torch.stack([teacher.view_head(f.pooled_BD) for f in whole])
        views = cross_view_cross_entropy(s, t, method.center.value, 0.1, 0.04)
        terms = []
        for w, target in enumerate(whole):
            p = torch.softmax((teacher.region_head(target.patches_BND) - method.region_center.value) / 0.04, -1)
            for v, f in enumerate(seen):
                if v == w:
                    continue
                cosine = torch.cosine_similarity(f.patches_BND[:, :, None], target.patches_BND[:, None], dim=-1)
                best = cosine.argmax(-1)
                matched = torch.gather(p, 1, best[..., None].expand(-1, -1, p.shape[-1]))
                log_q = torch.log_softmax(student.region_head(f.patches_BND) / 0.1, -1)
                terms.append(-(matched * log_q).sum(-1).mean())
        regions = torch.stack(terms).mean()
    assert len(terms) == 6
    torch.testing.assert_close(out.loss, 0.5 * views + 0.5 * regions, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.metrics["esvit/region_loss"], regions, rtol=1e-9, atol=0)


def test_both_centres_move_after_use():
    method, batch = make(), batch_of()
    method.eval()
    method(batch, T)
    assert method.center.value.abs().max() == 0 and method.region_center.value.abs().max() == 0
    with torch.no_grad():
        whole = method.teacher.backbone(batch.views["global"].flatten(0, 1))
        view = 0.1 * method.teacher.view_head(whole.pooled_BD).mean(0)
        region = 0.1 * method.teacher.region_head(whole.patches_BND.flatten(0, 1)).mean(0)
    method.train()(batch, T)
    torch.testing.assert_close(method.center.value, view)
    torch.testing.assert_close(method.region_center.value, region)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_any_encoder_with_a_map_serves(name):
    vit = name.startswith("vit")
    arch = Arch(embed_dim=32, depth=1, num_heads=2) if vit else Arch(layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))
    encoder = build_encoder(
        name, image_size=32, patch_size=8 if vit else None, stem="imagenet" if vit else "cifar", arch=arch
    )
    method = make(encoder=encoder)
    out = method(batch_of(), T)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)
    assert all(p.grad is None for p in method.teacher.parameters())


def test_the_papers_swin_takes_crops_of_96_pixels():
    """Windows of 7 on maps of 24, 12, 6 and 3 places."""
    arch = Arch(embed_dim=16, layers=(1, 1, 1, 1), heads=(1, 1, 2, 2))
    encoder = build_encoder("swin_tiny_patch4_window7_224", image_size=224, arch=arch)
    method = make(encoder=encoder)
    views = {"global": torch.randn(2, 1, 3, 224, 224), "local": torch.randn(2, 1, 3, 96, 96)}
    out = method(Batch(views=views, index_B=torch.arange(1)), T)
    assert [f.grid for f in encoder.encode_many([v[0] for v in views.values()])] == [(7, 7), (3, 3)]
    assert torch.isfinite(out.loss)


def test_the_region_task_can_start_later():
    method, batch = make(region_start=Epochs(2)), batch_of()
    early = method(batch, T.at(9))
    assert "esvit/region_loss" not in early.metrics
    torch.testing.assert_close(early.loss, early.metrics["esvit/view_loss"])  # DINO's loss, unhalved
    early.loss.backward()
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)  # as DDP wants it
    method.before_optimizer_step(T.at(9))
    assert all(p.grad is None for p in method.student.region_head.parameters())
    assert method.region_center.value.abs().max() == 0
    method.zero_grad(set_to_none=True)
    late = method(batch, T.at(10))
    late.loss.backward()
    method.before_optimizer_step(T.at(10))
    assert method.student.region_head.prototypes.direction.grad.abs().sum() > 0
    expected = 0.5 * late.metrics["esvit/view_loss"] + 0.5 * late.metrics["esvit/region_loss"]
    torch.testing.assert_close(late.loss.detach(), expected)


def test_prototypes_are_frozen_at_first_and_the_teacher_follows():
    method = make(drop_path=0.5)
    assert method.cfg.freeze_prototypes == Steps(2)
    method(batch_of(), T).loss.backward()
    method.before_optimizer_step(T.at(1))
    heads = (method.student.view_head, method.student.region_head)
    assert all(h.prototypes.direction.grad is None and h.mlp[0].weight.grad is not None for h in heads)
    before = method.teacher.region_head.prototypes.direction.clone()
    with torch.no_grad():
        method.student.region_head.prototypes.direction.add_(1.0)
    method.after_optimizer_step(T)
    moved = method.teacher.region_head.prototypes.direction - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.996), atol=1e-6, rtol=1e-4)
    assert method.encoder is method.teacher.backbone
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(method.teacher.backbone(x).pooled_BD, method.teacher.backbone(x).pooled_BD)


def test_dangers_name_blunt_teachers():
    assert EsViT.dangers(EsViTConfig()) == ()
    blunt = dataclasses.replace(EsViTConfig().teacher_temp, start=0.1)
    assert "sharper" in EsViT.dangers(EsViTConfig(teacher_temp=blunt))[0]
