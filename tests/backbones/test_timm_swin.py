import copy
import json

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.convert import load_state
from imprint.backbones.stored import encoder_state
from imprint.backbones.timm_swin import TimmSwin
from imprint.core.errors import ConfigError

NAMES = ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"]
SMALL = Arch(embed_dim=16, layers=(1, 2), heads=(2, 4), window=4)


def swin(name=NAMES[0], **more):
    torch.manual_seed(0)
    options = {"image_size": 32, "patch_size": 2, "arch": SMALL, **more}
    encoder = build_encoder(name, **options)
    assert isinstance(encoder, TimmSwin)
    return encoder.eval()


@pytest.mark.parametrize("name", NAMES)
def test_encode_equals_timms_own_forward(name):
    encoder, x = swin(name), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = encoder.encode(x)
        torch.testing.assert_close(features.pooled_BD, encoder.model(x))
        torch.testing.assert_close(features.patches_BND, encoder.model.forward_features(x).flatten(1, 2))
    assert (features.grid, features.cls_BD, features.registers_BRD) == ((8, 8), None, None)
    assert (encoder.patch_size, encoder.embed_dim, encoder.depth, encoder.has_tokens) == (4, 32, 2, False)


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_place_hides_all_its_embedded_patches(name):
    encoder, x = swin(name, mask_token=True), torch.randn(2, 3, 32, 32)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[0, 9] = True  # row 1, column 1: pixels 4..8
    changed = x.clone()
    changed[0, :, 4:8, 4:8] += 3.0
    with torch.no_grad():
        masked = encoder.encode(x, mask)
        assert torch.equal(masked.patches_BND, encoder.encode(changed, mask).patches_BND)
        full = encoder.encode(x)
        assert not torch.allclose(masked.patches_BND[0], full.patches_BND[0])
        torch.testing.assert_close(masked.patches_BND[1], full.patches_BND[1])
        embedded = encoder._embed(x, mask)
    same = (embedded[0] == encoder.mask_token.detach()[0, 0]).all(-1)
    assert same.sum() == 4 and bool(same[2:4, 2:4].all())
    encoder.encode(x, mask).pooled_BD.sum().backward()
    assert encoder.mask_token.grad is not None


def test_layers_are_stages_and_the_last_agrees_with_encode():
    encoder, x = swin(mask_token=True), torch.randn(2, 3, 32, 32)
    mask = torch.rand(2, 64) > 0.5
    with torch.no_grad():
        last, first = encoder.encode_layers(x, [-1, 0], mask_BN=mask)
        raw = encoder.encode_layers(x, [1], mask_BN=mask, norm=False)[0]
        full = encoder.encode(x, mask)
    torch.testing.assert_close(last.patches_BND, full.patches_BND)
    torch.testing.assert_close(encoder.model.norm(raw.patches_BND), full.patches_BND)
    assert first.grid == (16, 16) and first.patches_BND.shape == (2, 256, 16)
    with pytest.raises(ConfigError, match="0 to 1"):
        encoder.encode_layers(x, [2])


def test_multi_crop_sizes():
    encoder = swin(image_size=64)
    grids = [f.grid for f in encoder.encode_many([torch.randn(2, 3, 64, 64), torch.randn(3, 3, 24, 24)])]
    assert grids == [(16, 16), (6, 6)]


@pytest.mark.slow
def test_esvits_crops_through_a_whole_swin():
    encoder = build_encoder(NAMES[0], image_size=224).eval()
    with torch.no_grad():
        large, small = encoder.encode_many([torch.randn(1, 3, 224, 224), torch.randn(1, 3, 96, 96)])
    assert large.grid == (7, 7) and small.grid == (3, 3) and small.patches_BND.shape == (1, 9, 768)


def test_what_does_not_fit_is_said():
    encoder = swin(mask_token=True)
    with pytest.raises(ConfigError, match="multiples of 4"):
        encoder.encode(torch.randn(1, 3, 30, 32), torch.ones(1, 56, dtype=torch.bool))
    with pytest.raises(ConfigError, match="left out"):
        encoder.encode(torch.randn(1, 3, 32, 32), keep_BM=torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="mask_token=True"):
        swin().encode(torch.randn(1, 3, 32, 32), torch.ones(1, 64, dtype=torch.bool))
    with pytest.raises(ConfigError, match="drop_samples"):
        swin(drop_samples=True)


def test_stochastic_depth_is_what_was_asked_for():
    rates = lambda e: [getattr(b.drop_path1, "drop_prob", 0.0) for s in e.model.layers for b in s.blocks]  # noqa: E731
    assert rates(swin()) == [0.0] * 3
    assert rates(swin(drop_path=0.2)) == pytest.approx([0.0, 0.1, 0.2])
    assert rates(swin(drop_path=0.2, uniform_drop_path=True)) == [0.2] * 3


def test_config_mask_token_and_checkpointing():
    encoder = swin()
    encoder.enable_mask_token()
    again = build_encoder(**json.loads(json.dumps(encoder.config)))
    assert again.state_dict().keys() == encoder.state_dict().keys() and "mask_token" in again.state_dict()
    load_state(again, encoder_state(encoder), source="a run")
    assert torch.equal(again.mask_token, encoder.mask_token)
    other = copy.deepcopy(encoder)
    other.set_grad_checkpointing()
    x, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 64) > 0.5
    for model in (encoder, other):
        model(x, mask).pooled_BD.square().sum().backward()
    for p, q in zip(encoder.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    encoder.drop_mask_token()
    assert "mask_token" not in encoder.state_dict()
