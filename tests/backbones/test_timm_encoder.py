import copy

import pytest
import torch

from imprint.backbones.arch import Arch
from imprint.backbones.build import build_encoder
from imprint.backbones.encoder import require_tokens
from imprint.core.errors import ConfigError

CNNS = {
    "resnet": ("resnet10t", {"arch": Arch(channels=(16, 16, 24, 32))}, 32, 32),
    "cifar": ("resnet18", {"stem": "cifar", "arch": Arch(layers=(1, 1, 1, 1), channels=(16, 16, 24, 32))}, 8, 32),
    "bottleneck": ("resnet50", {"arch": Arch(layers=(1, 1, 1, 1), channels=(16, 16, 24, 32))}, 32, 128),
    "convnext": ("convnext_atto", {"arch": Arch(layers=(1, 1, 1, 1), channels=(16, 16, 24, 32))}, 32, 32),
    "regnet": ("regnetx_002", {}, 32, 368),
    "swin": ("swin_tiny_patch4_window7_224", {"arch": {"embed_dim": 12, "depths": [1, 1, 1, 1]}}, 32, 96),
    "resnetv2": ("resnetv2_18", {}, 32, 512),
}


def cnn(kind, **more):
    name, options, stride, width = CNNS[kind]
    torch.manual_seed(0)
    encoder = build_encoder(name, image_size=64, **options, **more)
    assert (encoder.patch_size, encoder.embed_dim, encoder.has_tokens) == (stride, width, False)
    return encoder


@pytest.mark.parametrize("kind", CNNS)
def test_encode_equals_timms_own_forward(kind):
    encoder = cnn(kind).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = encoder(x)
        assert torch.equal(features.pooled_BD, encoder.model(x))
    side = 64 // encoder.patch_size
    assert features.grid == (side, side) and features.patches_BND.shape == (2, side * side, encoder.embed_dim)
    assert features.cls_BD is None and features.registers_BRD is None


@pytest.mark.parametrize("kind", CNNS)
def test_stages_and_other_sizes(kind):
    encoder = cnn(kind).eval()
    x = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        last, first = encoder.encode_layers(x, [-1, 0])
        full = encoder(x)
    assert full.grid == (64 // encoder.patch_size, 128 // encoder.patch_size)
    torch.testing.assert_close(last.patches_BND, full.patches_BND)
    assert first.grid[0] > last.grid[0] and encoder.depth == 4
    torch.testing.assert_close(first.pooled_BD, first.patches_BND.mean(1))


def test_patches_are_the_map_row_by_row():
    encoder = cnn("resnet").eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features, raw = encoder(x), encoder.model.forward_features(x)
    assert torch.equal(features.patches_BND[0, 1 * 3 + 2], raw[0, :, 1, 2])


@pytest.mark.parametrize("kind", ["resnet", "cifar", "convnext"])
def test_channels_last_gives_the_same_features_and_gradients(kind):
    plain = cnn(kind)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64)
    for encoder, images in ((plain, x), (last, x.to(memory_format=torch.channels_last))):
        encoder(images).pooled_BD.square().sum().backward()
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", CNNS)
def test_every_parameter_takes_part_in_a_step(kind):
    encoder = cnn(kind)
    encoder(torch.randn(2, 3, 64, 64)).pooled_BD.sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_heads_with_a_hidden_layer_pool_wider_than_they_map():
    encoder = build_encoder("mobilenetv3_small_050", image_size=64).eval()
    features = encoder(torch.randn(1, 3, 64, 64))
    assert features.pooled_BD.shape == (1, encoder.embed_dim) and encoder.embed_dim == 1024
    assert features.patches_BND.shape == (1, 4, encoder.patch_dim) and encoder.patch_dim == 288


def test_the_cifar_stem_keeps_the_resolution():
    encoder = cnn("cifar").eval()
    assert encoder.model.conv1.stride == (1, 1) and encoder.model.conv1.kernel_size == (3, 3)
    first, *_ = encoder.encode_layers(torch.randn(1, 3, 32, 32), [0])
    assert first.grid == (32, 32)
    assert encoder(torch.randn(1, 3, 32, 32)).grid == (4, 4)


def test_the_stem_stays_trainable_and_initialised_as_timm_does():
    weight = cnn("cifar").model.conv1.weight
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.2)


def test_masks_are_refused_with_advice():
    encoder = cnn("resnet")
    with pytest.raises(ConfigError, match="Choose a ViT"):
        encoder.encode(torch.randn(1, 3, 64, 64), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ConfigError, match="choose a ViT"):
        encoder.enable_mask_token()
    for needs in ({}, {"mask": True}, {"drop": True}):
        with pytest.raises(ConfigError, match="simclr, dino"):
            require_tokens(encoder, "mae", ("simclr", "dino"), **needs)


def test_wrong_channels_are_named():
    with pytest.raises(ConfigError, match=r"\(B, 3, H, W\) and got \(1, 1, 64, 64\)"):
        cnn("resnet").encode(torch.randn(1, 1, 64, 64))


def test_models_of_one_size_say_so():
    encoder = build_encoder("cait_xxs24_224", image_size=32, arch={"depth": 1, "embed_dim": 32, "num_heads": 2})
    assert encoder(torch.randn(1, 3, 32, 32)).cls_BD is not None
    with pytest.raises(ConfigError, match="32 x 32 only"):
        encoder(torch.randn(1, 3, 64, 64))


def test_unknown_feature_shapes_are_refused():
    encoder = build_encoder("hiera_tiny_224", image_size=64)
    with pytest.raises(ConfigError, match="neither a map nor plain tokens"):
        encoder(torch.randn(1, 3, 64, 64))


def test_grad_checkpointing_keeps_the_gradients():
    encoder = cnn("bottleneck").eval()
    other = copy.deepcopy(encoder)
    other.set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64)
    for model in (encoder, other):
        model(x).pooled_BD.square().sum().backward()
    for p, q in zip(encoder.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_compiles_without_graph_breaks():
    encoder = cnn("cifar").eval()
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x).pooled_BD, encoder(x).pooled_BD)
