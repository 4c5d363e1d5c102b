import json

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.timm_beit import TimmBeit, resized_table
from imprint.core.errors import ConfigError

KINDS = {
    "own": {},
    "shared": {"relative_positions": "shared", "absolute_positions": False},
    "block": {"relative_positions": "block", "absolute_positions": True, "layer_scale": 0.0},
    "absolute": {"relative_positions": "none", "absolute_positions": True, "mlp": "swiglu", "pool": "token"},
}


def beit(kind="shared", **more):
    torch.manual_seed(0)
    arch = Arch(embed_dim=32, depth=2, num_heads=2, **KINDS[kind])
    options = {"image_size": 32, "patch_size": 8, "mask_token": True, "arch": arch, **more}
    encoder = build_encoder("beit_base_patch16_224", **options)
    assert isinstance(encoder, TimmBeit)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_encode_equals_timms_own_forward(kind):
    encoder, x = beit(kind), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = encoder.encode(x)
        torch.testing.assert_close(features.pooled_BD, encoder.model(x), rtol=1e-5, atol=1e-5)
        tokens = encoder.model.forward_features(x)
    torch.testing.assert_close(features.patches_BND, tokens[:, 1:], rtol=1e-5, atol=1e-5)
    assert features.grid == (4, 4) and features.cls_BD is not None
    assert encoder.can_mask and encoder.has_tokens and encoder.can_drop == (kind == "absolute")


@pytest.mark.parametrize("kind", KINDS)
def test_layers_masks_and_attention(kind):
    encoder, x = beit(kind), torch.randn(2, 3, 32, 32)
    mask = torch.rand(2, 16) > 0.5
    with torch.no_grad():
        first, last = encoder.encode_layers(x, [0, -1], mask_BN=mask)
        raw = encoder.encode_layers(x, [-1], mask_BN=mask, norm=False)[0]
        full = encoder.encode(x, mask)
        torch.testing.assert_close(last.patches_BND, full.patches_BND)
        torch.testing.assert_close(encoder.model.norm(raw.patches_BND), full.patches_BND)
        assert not torch.allclose(first.patches_BND, last.patches_BND)
        hidden = mask.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        torch.testing.assert_close(encoder.encode(torch.where(hidden, 5.0, x), mask).pooled_BD, full.pooled_BD)
        seen = {}
        block = encoder.model.blocks[1]
        block.attn.proj.register_forward_pre_hook(lambda module, inputs: seen.update(mixed=inputs[0]))
        block.norm1.register_forward_hook(lambda module, inputs, output: seen.update(x=output))
        encoder.encode(x)
        probabilities = encoder.attention(x)
        qkv = torch.nn.functional.linear(seen["x"].reshape(2, 17, 32), block.attn.qkv.weight[64:], block.attn.v_bias)
    values = qkv.reshape(2, 17, 2, 16).transpose(1, 2)
    mixed = (probabilities @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed, seen["mixed"].reshape(2, 17, 32), rtol=1e-4, atol=1e-4)


def test_patches_are_kept_only_without_relative_positions():
    keep = torch.tensor([[0, 3], [5, 1]])
    assert beit("absolute").encode(torch.randn(2, 3, 32, 32), keep_BM=keep).patches_BND.shape == (2, 2, 32)
    with pytest.raises(ConfigError, match="relative positions"):
        beit().encode(torch.randn(2, 3, 32, 32), keep_BM=keep)


@pytest.mark.parametrize("kind", KINDS)
def test_other_image_sizes_and_gradients(kind):
    encoder = beit(kind)
    features = encoder.encode(torch.randn(2, 3, 48, 16), torch.rand(2, 12) > 0.5)
    assert features.grid == (6, 2) and features.patches_BND.shape == (2, 12, 32)
    (features.pooled_BD.sin().sum() + features.patches_BND.sin().sum()).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_tables_of_the_same_grid_stay_and_smooth_ones_survive():
    table = torch.randn(7 * 7 + 3, 2)
    assert resized_table(table, (4, 4), (4, 4)) is table
    slope = torch.arange(7.0)[:, None].expand(7, 7).reshape(-1, 1)
    wide = resized_table(torch.cat([slope, torch.tensor([[7.0], [8.0], [9.0]])]), (4, 4), (4, 8))
    grid = wide[:-3].view(7, 15)
    torch.testing.assert_close(grid, grid[:, :1].expand(7, 15), rtol=0, atol=1e-3)
    assert bool((grid[1:, 0] > grid[:-1, 0]).all()) and wide[-3:, 0].tolist() == [7.0, 8.0, 9.0]


def test_shared_means_one_table_and_none_means_none():
    names = [n for n, _ in beit("shared").named_parameters() if "relative" in n]
    assert names == ["model.rel_pos_bias.relative_position_bias_table"]
    assert beit("shared").model.pos_embed is None
    assert len([n for n, _ in beit("block").named_parameters() if "relative" in n]) == 2
    assert not [n for n, _ in beit("absolute").named_parameters() if "relative" in n]
    assert beit("block").model.blocks[0].gamma_1 is None


@pytest.mark.parametrize("kind", KINDS)
def test_config_builds_the_same_shape_again(kind):
    encoder = beit(kind, drop_path=0.2, drop_samples=True, uniform_drop_path=True)
    again = build_encoder(**json.loads(json.dumps(encoder.config)))
    shapes = {k: v.shape for k, v in encoder.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes and again.config == encoder.config


@pytest.mark.parametrize(
    ("name", "arch", "message"),
    [
        ("vit_tiny_patch16_224", Arch(relative_positions="shared"), "choose a beit"),
        ("beit_base_patch16_224", {"relative_positions": "shard"}, "Did you mean 'shared'"),
        ("beit_base_patch16_224", Arch(qk_norm=True), "qk_norm"),
        ("resnet18", Arch(layer_scale=0.1), "is for ViTs"),
        ("vit_tiny_patch16_224", {"mlp": "swigl"}, "Did you mean 'swiglu'"),
    ],
)
def test_parts_that_a_family_lacks_are_named(name, arch, message):
    with pytest.raises(ConfigError, match=message):
        build_encoder(name, image_size=32, arch=arch)
