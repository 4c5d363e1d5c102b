import dataclasses

import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress, Steps
from imprint.core.schedules import constant
from imprint.data.batch import Batch, Normalise
from imprint.methods.dinov2 import DINOv2
from imprint.methods.gram import Gram, GramConfig
from imprint.recipes.book import recipe, stages_of

NOW = Progress(5, 100, 10)


def encoder_of(size=32):
    config = recipe("gram/debug").encoder
    return build_encoder(config.name, image_size=size, patch_size=8, arch=config.arch)


def make(**changes):
    torch.manual_seed(0)
    return Gram(dataclasses.replace(recipe("gram/debug").method, **changes), encoder_of())


def batch_of(size=32, count=4):
    generator = torch.Generator().manual_seed(1)
    views = {
        "global": torch.randn(2, count, 3, size, size, generator=generator),
        "local": torch.randn(2, count, 3, 16, 16, generator=generator),
    }
    masks = torch.rand(2, count, 16, generator=generator) < 0.3
    batch = Batch(views=views, masks={"global": masks}, index_B=torch.arange(count))
    return batch.prepared(torch.device("cpu"), Normalise())


def shaken(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module


def test_defaults_are_the_papers_and_stages_follow_a_run_of_dinov2():
    cfg = GramConfig()
    assert cfg.gram_weight(NOW) == 2.0 and cfg.refresh == Steps(10_000) and cfg.refreshes == 3
    assert (cfg.level, cfg.negatives) == ("image", "keep")
    for name in ("paper", "small"):
        first, second = stages_of(f"gram/{name}")
        assert (first.name, second.name, second.start) == ("dinov2", "gram", "../stage-1")
        assert first.method.prototypes == second.method.prototypes and first.encoder == second.encoder
    paper = stages_of("gram/paper")[1]
    assert paper.method.gram_size == 2 * paper.encoder.image_size
    assert [paper.method.gram_weight(Progress(s, 30_000, 100)) for s in (0, 1000)] == [0.0, 2.0]


def test_the_objective_of_dinov2_goes_on_and_the_gram_loss_is_added():
    method, batch = make(gram_size=None), batch_of()
    shaken(method.anchor)
    out = method(batch, NOW)
    torch.manual_seed(0)
    names = {f.name for f in dataclasses.fields(DINOv2.Config)} & {f.name for f in dataclasses.fields(GramConfig)}
    plain = DINOv2(DINOv2.Config(**{name: getattr(method.cfg, name) for name in names}), encoder_of())
    plain.load_state_dict(method.state_dict(), strict=False)
    before = plain(batch, NOW).loss
    large = batch.views["global"].flatten(0, 1)
    student = F.normalize(method.backbone(large, batch.masks["global"].flatten(0, 1)).patches_BND, dim=-1)
    anchor = F.normalize(method.anchor(large).patches_BND, dim=-1)
    gram = F.mse_loss(student @ student.mT, anchor @ anchor.mT)
    torch.testing.assert_close(out.metrics["gram/gram"], gram.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.loss, before + 2.0 * gram, rtol=1e-4, atol=1e-5)
    out.loss.backward()
    assert all(p.grad is None for p in method.anchor.parameters())


def test_the_anchor_sees_sharper_crops_and_its_features_fit_the_students_grid():
    method, batch = make(gram_size=64), batch_of(size=64)
    view = next(v for v in Gram.views(method.cfg, 32) if v.name == "global")
    (mask,) = Gram.masks(method.cfg, 32, 8)
    assert view.crop.size == 64 and mask.grid == (4, 4)
    sizes = {}
    method.anchor.register_forward_hook(lambda m, args, out: sizes.update(anchor=args[0].shape[-1]))
    method.average.backbone.register_forward_hook(lambda m, args, out: sizes.update(teacher=args[0].shape[-1]))
    out = method(batch, NOW)
    assert sizes == {"anchor": 64, "teacher": 32} and torch.isfinite(out.loss)
    with pytest.raises(ConfigError, match="gram_size"):
        Gram.views(dataclasses.replace(method.cfg, gram_size=16), 32)


def test_the_anchor_rests_between_refreshes_and_at_most_so_many_come():
    method = make(refresh=Steps(3), refreshes=2, momentum=constant(0.5))
    changes = []
    for step in range(12):
        before = method.anchor.model.norm.weight.clone()
        shaken(method.backbone)
        method.after_optimizer_step(Progress(step, 12, 4))
        if not torch.equal(before, method.anchor.model.norm.weight):
            changes.append(step + 1)
            assert torch.equal(method.anchor.model.norm.weight, method.average.backbone.model.norm.weight)
    assert changes == [3, 6]


def test_it_starts_from_a_run_of_dinov2():
    torch.manual_seed(2)
    previous = shaken(DINOv2(recipe("dinov2/debug").method, encoder_of()))
    shaken(previous.average)
    method = make()
    method.inherit(previous)
    for name, value in previous.state_dict().items():
        assert torch.equal(method.state_dict()[name], value), name
    for name, value in previous.average.backbone.state_dict().items():
        if name != "mask_token":
            assert torch.equal(method.anchor.state_dict()[name], value), name
    with pytest.raises(ConfigError, match="average"):
        method.inherit(torch.nn.Linear(2, 2))
    other = DINOv2(dataclasses.replace(recipe("dinov2/debug").method, shared_head=True), encoder_of())
    with pytest.raises(ConfigError, match="shared_head"):
        method.inherit(other)


def test_its_parts_are_clipped_by_themselves():
    method = make()
    names = [name for group in method.param_groups() for name in group.names]
    assert {name.partition(".")[0] for name in names} == {"backbone", "image_head", "patch_head"}
    assert method.clipping == "module" and method.encoder is method.average.backbone
