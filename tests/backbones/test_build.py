import dataclasses
import json

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.timm_vit import TimmViT
from imprint.core.errors import ConfigError
from imprint.train.config import EncoderConfig

SMALL = Arch(embed_dim=32, depth=2, num_heads=2)


def test_arch_lists_only_what_is_set():
    assert Arch().overrides() == {}
    assert Arch(layers=(1, 2, 1, 1), depth=3).overrides() == {"depth": 3, "layers": [1, 2, 1, 1]}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "vit_tiny_patch16_224",
            {"patch_size": 8, "arch": SMALL, "registers": 2, "positions": "sincos", "mask_token": True},
        ),
        ("resnet18", {"stem": "cifar", "channels": 4, "arch": Arch(layers=(1, 1, 1, 1), channels=(16, 16, 16, 24))}),
        ("convnext_atto", {"arch": Arch(layers=(1, 1, 1, 1), channels=(8, 8, 8, 16)), "drop_path": 0.1}),
    ],
)
def test_config_is_json_and_builds_the_same_shape_again(name, options):
    encoder = build_encoder(name, image_size=32, **options)
    again = build_encoder(**json.loads(json.dumps(encoder.config)))
    shapes = {k: v.shape for k, v in encoder.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    assert again.config == encoder.config and type(again) is type(encoder)


def test_config_cannot_be_changed_from_outside():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, arch=SMALL)
    encoder.config["arch"]["depth"] = 99
    assert encoder.config["arch"]["depth"] == 2


def test_arch_may_be_a_mapping_with_unset_fields():
    arch = {"embed_dim": None, "layers": (1, 1, 1, 1), "channels": None, "depth": None}
    assert build_encoder("resnet18", image_size=32, arch=arch).config["arch"] == {"layers": [1, 1, 1, 1]}


def test_the_runs_encoder_config_has_the_same_words():
    config = EncoderConfig(name="vit_tiny_patch16_224", image_size=32, patch_size=8, arch=SMALL)
    encoder = build_encoder(config.name, image_size=config.image_size, patch_size=config.patch_size, arch=config.arch)
    assert (encoder.embed_dim, encoder.depth, encoder.patch_size, encoder.image_size) == (32, 2, 8, 32)
    assert isinstance(encoder, TimmViT) and encoder.has_tokens and encoder.training


def test_weights_come_from_torchs_generator():
    torch.manual_seed(3)
    first = build_encoder("resnet10t", image_size=32)
    torch.manual_seed(3)
    second = build_encoder("random:resnet10t", image_size=32)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_22", {}, "Did you mean 'vit_tiny_patch16_224'"),
        ("resnet18.nonsense", {}, "unknown published weights"),
        ("hub:resnet18", {}, "write timm:NAME"),
        ("vit_tiny_patch16_224", {"image_size": 40}, "no multiple of its patch size 16; use 32 or 48"),
        ("vit_tiny_patch16_224", {"image_size": 0}, "at least 1"),
        ("vit_tiny_patch16_224", {"drop_path": 1.0}, r"no rate in \[0, 1\)"),
        ("vit_tiny_patch16_224", {"stem": "cifar"}, "is for ResNets"),
        ("vit_tiny_patch16_224", {"stem": "cifer"}, "Did you mean 'cifar'"),
        ("vit_tiny_patch16_224", {"positions": "sincoz"}, "Did you mean 'sincos'"),
        ("vit_tiny_patch16_224", {"arch": {"dept": 3}}, "unexpected keyword"),
        ("vit_tiny_patch16_224", {"arch": {"embed_dim": 33, "num_heads": 2}}, "divisible"),
        ("resnet18", {"patch_size": 8}, "no patches"),
        ("resnet18", {"registers": 4}, "no register tokens"),
        ("resnet18", {"positions": "sincos"}, "choose a ViT"),
        ("resnet18", {"mask_token": True}, "choose a ViT"),
        ("resnet18", {"arch": Arch(layers=(1, 1, 1), channels=(16, 16, 16))}, "four numbers"),
        ("resnet18", {"arch": SMALL}, "unexpected keyword"),
        ("densenet121", {"drop_path": 0.1}, "unexpected keyword"),
        ("resnet18", {"pretrained": True, "weights": "x.pth"}, "not both"),
        ("timm:resnet18", {"arch": Arch(layers=(1, 1, 1, 1))}, "do not fit a changed arch"),
        ("timm:vit_tiny_patch16_224", {"positions": "sincos"}, "their own positions"),
        ("timm:vit_tiny_patch14_dinov9", {}, "Did you mean"),
    ],
)
def test_what_cannot_work_is_said(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_encoder(name, **{"image_size": 32, **options})


def test_without_network_the_error_names_the_ways_out(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="weights=FILE.*random:resnet18"):
        build_encoder("timm:resnet18", image_size=32)


def test_models_without_published_weights_are_named():
    with pytest.raises(ConfigError, match="publishes no weights"):
        build_encoder("timm:vit_small_patch16_36x1_224", image_size=32)


def test_published_weights_are_fitted_to_channels_size_and_registers(monkeypatch):
    import timm

    real = timm.create_model
    torch.manual_seed(0)
    published = real("vit_tiny_patch16_224", num_classes=0)

    def create(name, pretrained=False, **options):
        return published if pretrained else real(name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    encoder = build_encoder("timm:vit_tiny_patch16_224", image_size=96, channels=1, registers=2)
    block = "blocks.3.mlp.fc1.weight"
    assert torch.equal(encoder.model.get_parameter(block), published.get_parameter(block))
    expected = published.cls_token + published.pos_embed[:, :1]
    torch.testing.assert_close(encoder.model.cls_token, expected)
    assert encoder.model.pos_embed.shape == (1, 36, 192) and encoder.model.reg_token.shape == (1, 2, 192)
    grey = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(
        encoder.model.patch_embed.proj(grey),
        published.patch_embed.proj(grey.expand(1, 3, 16, 16)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_half_stem_halves_the_image_once():
    arch = Arch(layers=(1, 1, 1, 1), channels=(16, 16, 16, 24))
    encoder = build_encoder("resnet18", image_size=32, stem="half", arch=arch)
    features = encoder(torch.randn(2, 3, 32, 32))
    assert encoder.patch_size == 16 and features.grid == (2, 2) and features.patches_BND.shape == (2, 4, 24)


def test_mae_initialisation_is_xavier_uniform_and_for_vits_alone():
    torch.manual_seed(0)
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, init="mae", arch=Arch(depth=1))
    weight = encoder.model.blocks[0].mlp.fc1.weight
    bound = (6 / sum(weight.shape)) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    patches = encoder.model.patch_embed.proj.weight.flatten(1)
    assert 0.99 * (6 / sum(patches.shape)) ** 0.5 < patches.abs().max() <= (6 / sum(patches.shape)) ** 0.5
    with pytest.raises(ConfigError, match="is for ViTs"):
        build_encoder("resnet18", image_size=32, init="mae")


def test_depth_and_part_settings_survive_json_and_the_command_line():
    from imprint.cli import fields
    from imprint.cli.overrides import apply_words, split
    from imprint.core.codec import from_json, to_json
    from imprint.recipes.book import recipe

    line = (
        "--encoder.drop-path 0.3 --encoder.drop-samples --encoder.uniform-drop-path --encoder.arch.layer-scale 1e-5 "
        "--encoder.arch.mlp swiglu --encoder.arch.qk-norm true --encoder.registers 2"
    )
    _, pairs = split(line.split(), ())
    config = apply_words(recipe("dino/debug"), pairs, fields.fields("dino")[0]).encoder
    assert config.drop_samples and config.uniform_drop_path and config.arch.layer_scale == 1e-5
    assert from_json(EncoderConfig, json.loads(json.dumps(to_json(config)))) == config
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)} | {"channels": 3}
    encoder = build_encoder(**settings)
    again = build_encoder(**json.loads(json.dumps(encoder.config)))
    assert again.config == encoder.config and encoder.config["drop_samples"] and encoder.config["uniform_drop_path"]
    for built in (encoder, again):
        block = built.model.blocks[0]
        assert block.drop_path1.drop_prob == 0.3 and hasattr(block, "ls1") and built._drop_samples
        assert block.mlp.fc1.weight.shape[0] == 2 * block.mlp.fc2.weight.shape[1] and hasattr(block.attn, "q_norm")
    shapes = {k: v.shape for k, v in encoder.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes


def test_a_stored_encoder_of_before_these_settings_still_builds():
    encoder = build_encoder("vit_tiny_patch16_224", image_size=32, arch=SMALL)
    old = {k: v for k, v in encoder.config.items() if k not in ("drop_samples", "uniform_drop_path")}
    assert build_encoder(**old).config == encoder.config


def test_layer_scale_can_be_left_out_and_parts_without_positions_built():
    encoder = build_encoder("vit_small_patch14_dinov2", image_size=28, arch=Arch(depth=1, layer_scale=0.0))
    assert isinstance(encoder.model.blocks[0].ls1, torch.nn.Identity)
    bare = build_encoder(
        "vit_tiny_patch16_224", image_size=32, arch=Arch(depth=1, absolute_positions=False, pool="avg")
    )
    assert bare.model.pos_embed is None
    features = bare.eval()(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(features.pooled_BD, features.patches_BND.mean(1))
