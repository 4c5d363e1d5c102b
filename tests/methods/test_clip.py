"""CLIP's two towers in one step: its loss, what its parts see, and what a run leaves."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.backbones.dual_encoder import DualEncoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.clip import CLIP, CLIPConfig
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)
TINY = CLIPConfig(vocabulary=60, context=10, text_width=16, text_layers=2, text_heads=2, projection=24)


def encoder(name="vit_tiny_patch16_224"):
    if name == "resnet18":
        return build_encoder(name, image_size=32, stem="cifar", arch={"layers": (1,) * 4, "channels": (16, 16, 16, 32)})
    return build_encoder(name, image_size=32, patch_size=8, arch={"embed_dim": 32, "depth": 1, "num_heads": 2})


def method(name="vit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    return CLIP(dataclasses.replace(TINY, **changes), encoder(name)).train()


def batch(rows=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (rows, 10), generator=generator)
    for row in range(rows):
        size = 4 + row
        ids[row, 0], ids[row, size - 1], ids[row, size:] = 2, 3, -1
    images = torch.randn(1, rows, 3, 32, 32, generator=generator)
    return Batch(views={"global": images}, tokens={"caption": ids}, index_B=torch.arange(rows))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_loss_is_the_papers_figure_3(name):
    net, data = method(name).eval(), batch()
    out = net(data, T)
    pictures = F.normalize(net.towers.vision(data.views["global"][0]).pooled_BD @ net.towers.projection.weight.T)
    texts = F.normalize(net.towers.text.rows(data.tokens["caption"]))
    logits = pictures @ texts.T / 0.07
    own = torch.arange(6)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(out.loss, expected)
    assert out.metrics["clip/accuracy"].item() == pytest.approx((logits.argmax(1) == own).float().mean().item())
    assert out.metrics["clip/scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_gradients_reach_both_towers_both_projections_and_the_scale():
    net = method()
    net(batch(), T).loss.backward()
    for part in (net.towers.vision, net.towers.text, net.towers.projection):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())
    assert net.towers.log_scale.grad.item() != 0 and net.towers.text.head.weight.grad.any()


def test_the_scale_stays_within_its_bounds():
    net = method()
    for value, kept in ((9.0, math.log(100.0)), (2.0, 2.0), (-3.0, 0.0)):
        with torch.no_grad():
            net.towers.log_scale.fill_(value)
            net.after_optimizer_step(T)
        assert net.towers.log_scale.item() == pytest.approx(kept, rel=1e-6)


def test_gains_biases_and_the_scale_do_not_decay():
    groups = {group.name: group for group in method().param_groups()}
    bare = set(groups["no_decay"].names)
    assert "towers.log_scale" in bare and all(p.ndim <= 1 for p in groups["no_decay"].params)
    assert {"towers.text.token_embedding.weight", "towers.text.pos_embed"} <= set(groups["decay"].names)
    assert not groups["no_decay"].decay and groups["decay"].decay


def test_what_is_exported_reads_texts_and_sees_images():
    net = method()
    assert isinstance(net.encoder, DualEncoder) and net.encoder.embed_dim == 32 and net.encoder.joint_dim == 24
    assert net.encoder.config["text"]["kind"] == "clip" and net.encoder.tokenizer is None


def test_recipes_are_the_papers():
    paper = recipe("clip/paper")
    assert paper.batch_size == 32_768 and paper.length.n == 32 and paper.optim.weight_decay.start == 0.2
    assert paper.optim.betas == (0.9, 0.98) and paper.optim.eps == 1e-6 and paper.optim.lr.peak(32_768) == 5e-4
    assert paper.optim.lr.warmup.n == 2000 and paper.data.text.lowercase
    cfg = paper.method
    assert (cfg.context, cfg.text_width, cfg.text_layers, cfg.text_heads, cfg.projection) == (77, 512, 12, 8, 512)
    assert (1 / cfg.temperature, cfg.max_scale) == pytest.approx((14.2857, 100), rel=1e-4)
    r50 = recipe("clip/paper_r50")
    assert r50.optim.betas == (0.9, 0.999) and r50.optim.eps == 1e-8 and r50.method.projection == 1024
    (view,) = CLIP.views(cfg, 224)
    assert view.count == 1 and view.crop.scale == (0.9, 1.0) and view.look.flip == 0 and view.look.jitter == 0


@pytest.mark.parametrize("name", ["vit_base_patch32_clip_quickgelu_224", "resnet50_clip"])
def test_the_papers_own_image_towers_work(name):
    tower = build_encoder(name, image_size=64)
    net = CLIP(TINY, tower)
    with torch.no_grad():
        pooled = net.encoder(torch.randn(2, 3, 64, 64)).pooled_BD
    assert pooled.shape == (2, tower.embed_dim) and net.encoder.project(pooled).shape == (2, 24)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="max_scale"):
        CLIPConfig(temperature=0.001)
    with pytest.raises(ConfigError, match="label_smoothing"):
        CLIPConfig(label_smoothing=1.0)
    reader = build_encoder(
        "text:bert", image_size=32, arch={"embed_dim": 16, "depth": 1, "num_heads": 2}, vocabulary=60, context=10
    )
    with pytest.raises(ConfigError, match="must see images"):
        CLIP(TINY, reader)
