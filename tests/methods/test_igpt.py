import dataclasses

import numpy as np
import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.load import load_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress, Steps
from imprint.data.arrays import ArraySource
from imprint.data.batch import Batch, Normalise
from imprint.data.masks import Place, draw_masks
from imprint.methods.igpt import IGPT, IGPTConfig
from imprint.recipes.book import recipe, stages_of
from imprint.train.entry import pretrain_run

T = Progress(0, 10, 5)
ARCH = {"embed_dim": 16, "depth": 2, "num_heads": 2, "clusters": 12}


def make(side=6, **changes) -> IGPT:
    torch.manual_seed(0)
    method = IGPT(IGPTConfig(**changes), build_encoder("image_gpt_s", image_size=side, arch=ARCH))
    torch.nn.init.normal_(method.backbone.model.head.weight, std=0.1)  # it starts at zero
    return method


def batch_of(count=4, side=6, masked=0, labels=None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    masks = {}
    if masked:
        order = torch.rand(1, count, side * side, generator=generator).argsort(-1)
        masks = {"global": order < masked}
    views = {"global": torch.randn(1, count, 3, side, side, generator=generator)}
    batch = Batch(views=views, masks=masks, index_B=torch.arange(count), labels_B=labels)
    return batch.prepared(torch.device("cpu"), Normalise())


def test_defaults_are_the_papers():
    cfg = IGPTConfig()
    assert (cfg.objective, cfg.mask_ratio, cfg.generative) == ("autoregressive", 0.15, 1.0)
    paper = recipe("igpt/paper")
    assert (paper.encoder.name, paper.batch_size, paper.optim.betas) == ("image_gpt_l", 128, (0.9, 0.95))
    assert paper.length == Steps(1_000_000) and paper.optim.name == "adam"
    (view,) = IGPT.views(cfg, 32)
    assert view.crop.ratio == (1.0, 1.0) and view.look.flip == 0.0
    assert IGPT.masks(cfg, 32, 1) == ()


def test_the_loss_is_the_naive_sum_over_next_pixels():
    method, batch = make(), batch_of()
    tokens = method.backbone.tokens(batch.views["global"][0])
    total = 0.0
    for image in tokens:
        for place in range(36):
            # Only what stands before the pixel is shown; the rest is noise.
            shown = torch.where(torch.arange(36) < place, image, torch.randint(0, 12, (36,)))
            total -= method.backbone.logits(shown[None])[0, place].log_softmax(0)[image[place]]
    torch.testing.assert_close(method(batch, T).loss, total / (4 * 36))


def test_bert_scores_hidden_pixels_from_all_the_others():
    method, batch = make(objective="bert"), batch_of(masked=5)
    assert not method.backbone.causal
    tokens, mask = method.backbone.tokens(batch.views["global"][0]), batch.masks["global"][0]
    logits, total = method.backbone.logits(tokens, mask), 0.0
    for b in range(4):
        for place in mask[b].nonzero().flatten().tolist():
            total -= logits[b, place].log_softmax(0)[tokens[b, place]]
    torch.testing.assert_close(method(batch, T).loss, total / 20)


def test_bert_hides_fifteen_percent_everywhere_alike():
    (mask,) = IGPT.masks(IGPTConfig(objective="bert"), 12, 1)
    at = Place(seed=0, epoch=0, step=0, index_B=np.arange(1280), first=0, total=1280)
    drawn = np.asarray(draw_masks(mask, at)["global"][0])
    assert drawn.shape == (1280, 144)
    assert abs(drawn.mean() - 0.15) < 0.01 and (drawn.sum(1) == drawn[0].sum()).all()
    assert abs(drawn.mean(0) - drawn.mean()).max() < 5 * np.sqrt(0.15 * 0.85 / 1280)


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_every_parameter_learns(objective, stage):
    method = make(objective=objective, stage=stage, classes=3)
    if method.classifier is not None:
        torch.nn.init.normal_(method.classifier.weight)
    batch = batch_of(masked=5 if objective == "bert" else 0, labels=torch.tensor([0, 1, 2, 0]))
    method(batch, T).loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and (p.grad is None or p.grad.norm() == 0)] == []


def test_fine_tuning_adds_the_classifier_to_the_generative_loss():
    labels = torch.tensor([0, 1, 2, 0])
    both, batch = make(stage="finetune", classes=3), batch_of(labels=labels)
    torch.nn.init.normal_(both.classifier.weight)
    alone = make(stage="finetune", classes=3, generative=0.0)
    alone.load_state_dict(both.state_dict())
    pretrain = make()
    pretrain.load_state_dict(both.state_dict(), strict=False)
    logits = both.classify(batch.views["global"][0])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(alone(batch, T).loss, expected)
    torch.testing.assert_close(both(batch, T).loss, expected + pretrain(batch, T).loss)
    assert not alone.backbone.model.head.weight.requires_grad and pretrain.classify(batch.views["global"][0]) is None
    with pytest.raises(ConfigError, match="labels"):
        both(batch_of(), T)
    with pytest.raises(ConfigError, match="classes"):
        make(stage="finetune")


def test_the_palette_is_fitted_once():
    method = make()
    planted = torch.randn(12, 3)
    images = planted[torch.randint(0, 12, (8, 36))].transpose(1, 2).reshape(8, 3, 6, 6)
    method.fit(images)
    assert torch.cdist(planted, method.backbone.model.palette).min(1).values.max() < 1e-5
    torch.testing.assert_close(method.backbone.pictures(method.backbone.tokens(images)), images)
    before = method.backbone.model.palette.clone()
    method.fit(torch.zeros(8, 3, 6, 6))
    assert torch.equal(method.backbone.model.palette, before)


def test_pictures_keep_what_was_shown_and_repeat():
    method, batch = make(), batch_of()
    pictures = method.reconstruct(batch, T)
    assert set(pictures) == {"image", "visible", "completed", "sample"}
    colours = method.backbone.pictures(method.backbone.tokens(batch.views["global"][0]))
    assert torch.equal(pictures["completed"][:, :, :3], colours[:, :, :3]) and pictures["visible"][:, :, 3:].eq(0).all()
    assert torch.equal(method.reconstruct(batch, T)["sample"], pictures["sample"])
    bert, masked = make(objective="bert"), batch_of(masked=5)
    found = bert.reconstruct(masked, T)
    shown = ~masked.masks["global"][0].view(4, 1, 6, 6).expand(-1, 3, -1, -1)
    assert torch.equal(found["reconstruction"][shown], found["visible"][shown])


@pytest.mark.parametrize("objective", ["autoregressive", "bert"])
def test_stages_hand_on_network_and_palette_and_the_run_draws(tmp_path, objective):
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8), np.arange(32) % 2)
    (first,) = stages_of("igpt/debug")
    cfg = IGPTConfig(crop_scale=(0.6, 1.0), objective=objective)
    first = dataclasses.replace(first, method=cfg, stage="pretrain", length=Steps(2), device="cpu", workers=1)
    second = dataclasses.replace(
        first, stage="finetune", start="../stage-1", method=dataclasses.replace(cfg, stage="finetune")
    )
    run = pretrain_run((first, second), tmp_path / "run", source=source)
    encoders = [load_encoder(str(tmp_path / "run" / f"stage-{n}")) for n in (1, 2)]
    assert torch.equal(encoders[0].model.palette, encoders[1].model.palette) and bool(encoders[1].model.fitted)
    assert encoders[1].causal == (objective == "autoregressive")
    if encoders[1].causal:
        drawn = load_encoder(str(run.path))
        assert drawn.pictures(drawn.generate(2)).shape == (2, 3, 8, 8)


def test_other_encoders_and_settings_are_refused():
    with pytest.raises(ConfigError, match="image_gpt_s"):
        IGPT(IGPTConfig(), build_encoder("resnet18", image_size=32))
    with pytest.raises(ConfigError, match="bert"):
        IGPT(IGPTConfig(), build_encoder("image_gpt_s", image_size=6, arch={**ARCH, "causal": False}))
    with pytest.raises(ConfigError, match="mask_ratio"):
        IGPTConfig(mask_ratio=1.0)
    with pytest.raises(ConfigError, match="generative"):
        IGPTConfig(generative=-1.0)
