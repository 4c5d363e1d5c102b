import dataclasses

import pytest
import torch
import torch.nn.functional as F

from imprint.backbones.build import build_encoder
from imprint.core.errors import ConfigError
from imprint.core.progress import Progress
from imprint.data.batch import Batch
from imprint.methods.dvae import DVAE
from imprint.methods.mae import MAE
from imprint.methods.splitmask import SplitMask, SplitMaskConfig
from imprint.recipes.book import recipe

T = Progress(0, 10, 5)


def make(name="vit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    config = recipe("splitmask/debug")
    encoder = build_encoder(name, image_size=32, patch_size=8, arch=config.encoder.arch)
    return SplitMask(dataclasses.replace(config.method, **changes), encoder)


def batch_of(count=6):
    torch.manual_seed(1)
    mask = torch.rand(1, count, 16).argsort(-1).argsort(-1) < 8
    return Batch(
        views={"global": torch.randn(1, count, 3, 32, 32)}, masks={"global": mask}, index_B=torch.arange(count)
    )


def trained_dvae():
    config = recipe("dvae/debug")
    encoder = build_encoder(config.encoder.name, image_size=32, arch=config.encoder.arch)
    return DVAE(dataclasses.replace(config.method, vocabulary=48), encoder)


def test_defaults_are_the_papers():
    cfg = SplitMaskConfig()
    assert (cfg.tokenizer, cfg.vocabulary, cfg.decoder_depth, cfg.contrastive_weight) == ("random", 8192, 2, 1.0)
    (mask,) = SplitMask.masks(cfg, 224, 16)
    assert mask.ratio == 0.5 and mask.grid == (14, 14)
    (view,) = SplitMask.views(cfg, 224)
    assert view.look.flip == 0.5 and view.look.jitter == 0.0
    method = make()
    assert method.decoder.out.in_features == method.backbone.embed_dim


def test_both_halves_are_predicted_from_each_other():
    """One half after the other, as the paper tells it."""
    method = make().eval()
    batch = batch_of()
    images, mask = batch.views["global"][0], batch.masks["global"][0]
    words = method.words(images)
    inpainting, means = [], []
    for hidden in (mask, ~mask):
        seen = torch.stack([row.nonzero()[:, 0] for row in ~hidden])
        asked = torch.stack([row.nonzero()[:, 0] for row in hidden])
        features = method.backbone(images, keep_BM=seen)
        tokens = method.decoder.tokens(features.patches_BND, seen, asked[None], features.cls_BD[:, None])
        logits = method.decoder.out(tokens[:, -8:])
        inpainting.append(F.cross_entropy(logits.flatten(0, 1), words.gather(1, asked).flatten()))
        means.append(F.normalize(tokens[:, 1:].mean(1), dim=1))
    cosines = means[0] @ means[1].T / 0.2
    labels = torch.arange(6)
    matching = (F.cross_entropy(cosines, labels) + F.cross_entropy(cosines.T, labels)) / 2
    found = method(batch, T)
    torch.testing.assert_close(found.loss, torch.stack(inpainting).mean() + matching)
    torch.testing.assert_close(found.metrics["splitmask/matching"], matching.detach())


def test_the_encoder_sees_its_half_only():
    method = make().eval()
    batch = batch_of()
    images, mask = batch.views["global"][0], batch.masks["global"][0]
    tokens, _ = method.decoded(images, mask)
    hidden = mask.view(-1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    changed, _ = method.decoded(torch.where(hidden[:, None], 9.0, images), mask)
    torch.testing.assert_close(changed[:6], tokens[:6])
    assert not torch.allclose(changed[6:], tokens[6:])


def test_matching_is_a_switch():
    found = make(contrastive_weight=0.0)(batch_of(), T)
    torch.testing.assert_close(found.loss.detach(), found.metrics["splitmask/inpainting"])
    assert "splitmask/matching" not in found.metrics


def test_every_parameter_learns_and_the_tokenizer_does_not():
    method = make()
    method(batch_of(), T).loss.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in method.tokenizer.parameters())


def test_encoders_without_a_class_token_work():
    method = make("vit_base_patch16_gap_224")
    out = method(batch_of(), T)
    out.loss.backward()
    assert torch.isfinite(out.loss)


def test_words_of_a_trained_tokenizer():
    method, previous = make(tokenizer="dvae"), trained_dvae()
    with pytest.raises(ConfigError, match="no tokenizer"):
        method(batch_of(), T)
    method.inherit(previous)
    images = batch_of().views["global"][0]
    assert method.decoder.out.out_features == 48 and not any(p.requires_grad for p in method.tokenizer.parameters())
    torch.testing.assert_close(method.words(images), previous.tokenizer.encode_grid(images, (4, 4)))
    assert method.tokenizer is not previous.tokenizer
    method(batch_of(), T).loss.backward()
    again = make(tokenizer="dvae")
    again.inherit(method)  # go on from a run of this method
    torch.testing.assert_close(again(batch_of(), T).loss, method(batch_of(), T).loss)


def test_what_does_not_fit_is_refused():
    config = recipe("mae/debug")
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, arch=config.encoder.arch)
    with pytest.raises(ConfigError, match="starts from a run with a tokenizer"):
        make(tokenizer="dvae").inherit(MAE(config.method, encoder))
    with pytest.raises(ConfigError, match="starts from a run with a tokenizer"):
        make().inherit(trained_dvae())
    odd = build_encoder("vit_tiny_patch16_224", image_size=40, patch_size=8, arch=config.encoder.arch)
    with pytest.raises(ConfigError, match="equal halves"):
        SplitMask(SplitMaskConfig(), odd)
    with pytest.raises(ConfigError, match="splitmask encodes a part of the patches"):
        SplitMask(SplitMaskConfig(), build_encoder("resnet18", image_size=32))
    with pytest.raises(ConfigError, match="tokenizer"):
        make(tokenizer="morse")
