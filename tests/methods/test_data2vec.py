import dataclasses

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.core.schedules import constant
from imprint.data.batch import Batch, Normalise
from imprint.losses.data2vec import averaged_layers
from imprint.methods.data2vec import Data2Vec, Data2VecConfig
from imprint.recipes.book import recipe, stages_of

T = Progress(0, 10, 5)
BEIT = Arch(embed_dim=32, depth=2, num_heads=2, layer_scale=1e-4, relative_positions="shared", absolute_positions=False)


def method_of(name="vit_tiny_patch16_224", arch=None, drop_path=0.0, **changes) -> Data2Vec:
    torch.manual_seed(0)
    base = recipe("data2vec/debug")
    encoder = build_encoder(name, image_size=32, patch_size=8, arch=arch or base.encoder.arch, drop_path=drop_path)
    return Data2Vec(dataclasses.replace(base.method, **changes), encoder)


def batch_of(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(1, count, 16, generator=generator) < 0.6
    images = torch.randn(1, count, 3, 32, 32, generator=generator)
    batch = Batch(views={"global": images}, masks={"global": mask}, index_B=torch.arange(count))
    return batch.prepared(torch.device("cpu"), Normalise())


def test_defaults_are_the_papers():
    cfg = Data2VecConfig()
    assert (cfg.top_layers, cfg.beta, cfg.target_norm, cfg.momentum) == (6, 2.0, "layer", constant(0.9998))
    (mask,) = Data2Vec.masks(cfg, 224, 16)
    assert (mask.grid, mask.patches, mask.min_block) == ((14, 14), 120, 16)
    (view,) = Data2Vec.views(cfg, 224)
    assert view.count == 1 and (view.look.brightness, view.look.hue, view.look.jitter) == (0.4, 0.0, 1.0)
    base = recipe("data2vec/paper")
    assert base.optim.lr.peak(2048) == 2e-3 and base.optim.clip == 3.0 and base.encoder.drop_path == 0.25
    first, second = stages_of("data2vec/paper_vit_large")
    assert first.optim.lr.peak(4096) == 1e-3 and second.method.momentum == constant(0.9999)


@pytest.mark.parametrize("arch", [None, BEIT], ids=["vit", "beit"])
def test_targets_are_the_teachers_blocks_of_the_whole_image(arch):
    method = method_of("vit_tiny_patch16_224" if arch is None else "beit_base_patch16_224", arch, drop_path=0.5)
    batch = batch_of()
    images, mask = batch.views["global"][0], batch.masks["global"][0]
    teacher = method.train().objective.teacher
    assert not teacher.training and method.objective.student.training
    layers = teacher.layers(images, 2)
    blocks = teacher.backbone.encode_layers(images, (0, 1), norm=False)
    for layer, block in zip(layers, blocks, strict=True):
        torch.testing.assert_close(layer, block.patches_BND)
    # Only masked pixels differ: the student's input is the same, the teacher's is not.
    grown = mask.view(4, 1, 4, 1, 4, 1).expand(-1, 3, -1, 8, -1, 8).reshape(4, 3, 32, 32)
    other = images.masked_fill(grown, 3.0)
    method.eval()
    torch.testing.assert_close(
        method.objective.student.predict(images, mask), method.objective.student.predict(other, mask)
    )
    assert not torch.allclose(averaged_layers(layers), averaged_layers(teacher.layers(other, 2)))


def test_all_of_the_student_learns_and_the_teacher_follows():
    method = method_of(drop_path=0.1)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    start = {n: p.clone() for n, p in method.objective.teacher.named_parameters()}
    out = method(batch_of(), T)
    out.loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(not p.requires_grad for p in method.objective.teacher.parameters())
    optimizer.step()
    method.after_optimizer_step(T)
    for (name, moved), trained in zip(
        method.objective.teacher.named_parameters(), method.objective.student.parameters(), strict=True
    ):
        torch.testing.assert_close(moved, 0.99 * start[name] + 0.01 * trained.detach())
    assert {"data2vec/target_std", "data2vec/prediction_std"} <= out.metrics.keys()


def test_the_exported_weights_are_chosen():
    assert method_of().encoder is not method_of(export="teacher").encoder
    method = method_of(export="teacher")
    assert method.encoder is method.objective.teacher.backbone


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"1\.\.2"):
        method_of(top_layers=3)
    with pytest.raises(ConfigError, match="loss_scale"):
        method_of(loss_scale=0.0)
    with pytest.raises(ConfigError, match="simclr"):
        Data2Vec(Data2VecConfig(), build_encoder("resnet18", image_size=32))
    assert len(Data2Vec.dangers(Data2VecConfig(momentum=constant(0.0), target_norm="none", post_norm=False))) == 2
    assert Data2Vec.dangers(Data2VecConfig()) == ()
