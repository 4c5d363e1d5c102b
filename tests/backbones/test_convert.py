import argparse
import re

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.convert import load_state, load_weights
from imprint.backbones.layouts import unwrap
from imprint.core.errors import CheckpointError

SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 1}


def vit(seed=0, **more):
    torch.manual_seed(seed)
    options = {"image_size": 32, "patch_size": 8, "arch": SMALL, **more}
    return build_encoder("vit_tiny_patch16_224", **options).eval()


def resnet(seed=0, **more):
    torch.manual_seed(seed)
    options = {"image_size": 64, "arch": {"layers": [1, 1, 1, 1]}, **more}
    return build_encoder("resnet18", **options).eval()


def agree(a, b, size=32, channels=3, tolerance=1e-5):
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        first, second = a(x), b(x)
    torch.testing.assert_close(first.pooled_BD, second.pooled_BD, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(first.patches_BND, second.patches_BND, rtol=tolerance, atol=tolerance)


def add(prefix, state):
    return {prefix + k: v for k, v in state.items()}


HEAD = {"mlp.0.weight": torch.randn(3, 3), "last_layer.weight_g": torch.randn(3, 1)}
WRAPPINGS = {
    "bare": lambda s: s,
    "dino": lambda s: {
        "student": add("module.backbone.", {k: v + 1 for k, v in s.items() if v.is_floating_point()}),
        "teacher": {**add("backbone.", s), **add("head.", HEAD)},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit", lr=0.1),
    },
    "mae": lambda s: {"model": {**s, "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.randn(8, 64)}},
    "moco": lambda s: {
        "epoch": 1,
        "state_dict": {
            **add("module.encoder_q.", {**s, "fc.weight": torch.randn(8, 8)}),
            **add("module.encoder_k.", {k: v + 1 if v.is_floating_point() else v for k, v in s.items()}),
            "module.queue": torch.randn(8, 8),
        },
    },
    "moco_v3": lambda s: {
        "state_dict": {
            **add("module.base_encoder.", s),
            **add("module.momentum_encoder.", {k: v + 1 if v.is_floating_point() else v for k, v in s.items()}),
        }
    },
    "ijepa": lambda s: {
        "encoder": add("module.", {k: v + 1 for k, v in s.items() if v.is_floating_point()}),
        "target_encoder": add("module.", s),
        "predictor": {"module.x": torch.zeros(1)},
    },
    "imprint": lambda s: {**add("teacher.backbone.model.", s), **add("teacher.head.", HEAD)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", [vit, resnet])
def test_public_wrappings(wrapping, kind, tmp_path):
    source, target = kind(1), kind(2)
    torch.save(WRAPPINGS[wrapping](source.model.state_dict()), tmp_path / "weights.pth")
    report = load_weights(target, tmp_path / "weights.pth")
    agree(source, target, size=source.image_size)
    assert report.missing == () and report.adapted == ()
    assert len(report.loaded) >= len(list(source.parameters()))


def test_the_report_names_what_was_not_used():
    source, target = vit(1), vit(2)
    state = {"state_dict": {**source.model.state_dict(), "head.weight": torch.zeros(5, 64)}}
    report = load_state(target, unwrap(state), source="somewhere")
    assert report.unexpected == ("head.weight",)
    assert "not used: head.weight" in str(report) and "timm ViT" in str(report)


def test_torchvision_vit():
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    theirs = VisionTransformer(32, 8, 2, 1, 64, 256, num_classes=4).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    target = vit()
    report = load_state(target, theirs.state_dict(), source="torchvision")
    theirs.heads = torch.nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(target(x).cls_BD, theirs(x), rtol=1e-4, atol=1e-4)
    assert report.layout == "torchvision ViT" and set(report.unexpected) == {"head.weight", "head.bias"}


def test_torchvision_resnet():
    from torchvision.models import resnet18

    theirs = resnet18().eval()
    target = build_encoder("resnet18", image_size=64).eval()
    load_state(target, theirs.state_dict(), source="torchvision")
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(target(x).pooled_BD, theirs(x), rtol=1e-5, atol=1e-5)


def test_a_resnet_kept_as_a_sequence():
    source, target = resnet(1), resnet(2)
    m = source.model
    sequence = torch.nn.Sequential(m.conv1, m.bn1, m.act1, m.maxpool, m.layer1, m.layer2, m.layer3, m.layer4)
    report = load_state(target, add("backbone.", sequence.state_dict()), source="lightly")
    assert report.layout == "sequential ResNet"
    agree(source, target, size=64)


@pytest.mark.parametrize("old_names", [True, False])
def test_hugging_face_vit(old_names):
    """Names of transformers' ViT before and since version 5, written out, so that the test needs no transformers."""
    source, target = vit(1), vit(2)
    state = {}
    for name, tensor in source.model.state_dict().items():
        name = name.replace("patch_embed.proj.", "embeddings.patch_embeddings.projection.")
        name = re.sub("^cls_token", "embeddings.cls_token", name)
        name = re.sub("^pos_embed", "embeddings.position_embeddings", name)
        name = re.sub(r"^norm\.", "layernorm.", name)
        name = re.sub(r"^blocks\.", "encoder.layer." if old_names else "layers.", name)
        name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        inner = "attention.attention." if old_names else "attention."
        words = ("query", "key", "value") if old_names else ("q_proj", "k_proj", "v_proj")
        if "attn.qkv" in name:
            for word, part in zip(words, tensor.chunk(3), strict=True):
                state["vit." + name.replace("attn.qkv", inner + word)] = part
            continue
        if old_names:
            name = name.replace("attn.proj", "attention.output.dense")
            name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        else:
            name = name.replace("attn.proj", "attention.o_proj")
        state["vit." + name] = tensor
    report = load_state(target, state, source="hub")
    assert report.layout == "Hugging Face ViT" and report.prefix == "vit." and report.missing == ()
    agree(source, target)


def test_dinov2_names_registers_and_chunks():
    source = vit(1, registers=4, arch={**SMALL, "init_values": 1.0}, mask_token=True)
    state = dict(source.model.state_dict())
    cls_position = torch.randn(1, 1, 64)
    state["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - cls_position
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.full((1, 64), 0.5)
    chunked = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", k): v for k, v in state.items()}
    target = vit(2, registers=4, arch={**SMALL, "init_values": 1.0}, mask_token=True)
    report = load_state(target, add("teacher.backbone.", chunked), source="dinov2")
    agree(source, target, tolerance=1e-3)  # (token - position) + position rounds
    assert report.adapted == ("positions of prefix tokens are added to the tokens",)
    assert target.mask_token is not None and float(target.mask_token.detach().mean()) == 0.5


def test_positions_are_interpolated_to_another_image_size():
    source, target = vit(1), vit(2, image_size=64)
    report = load_state(target, source.model.state_dict(), source="x")
    assert report.adapted == ("positions interpolated from 4x4 to 8x8",)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(source(x).pooled_BD, target(x).pooled_BD, rtol=1e-5, atol=1e-5)


def test_a_patch_embedding_of_another_size_sees_the_same_picture():
    source, target = vit(1), vit(2, image_size=64, patch_size=16)
    report = load_state(target, source.model.state_dict(), source="x")
    assert any("patch 8 to 16" in a for a in report.adapted)
    x = torch.randn(1, 3, 4, 4)
    small = torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear")
    large = torch.nn.functional.interpolate(x, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        a, b = source.model.patch_embed(small), target.model.patch_embed(large)
    assert float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)) > 0.95


def test_channels_are_adapted_so_that_equal_channels_respond_as_before():
    source, target = resnet(1), resnet(2, channels=1)
    report = load_state(target, source.model.state_dict(), source="x")
    assert any("3 to 1 channels" in a for a in report.adapted)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(target(x).pooled_BD, source(x.expand(2, 3, 64, 64)).pooled_BD, rtol=1e-4, atol=1e-4)


def test_a_cifar_stem_stays_fresh_and_a_fitting_one_is_loaded():
    source, target = resnet(1), resnet(2, stem="cifar")
    before = target.model.conv1.weight.clone()
    report = load_state(target, source.model.state_dict(), source="x")
    assert torch.equal(target.model.conv1.weight, before) and "conv1.weight" in report.missing
    cifar = resnet(3, stem="cifar")
    load_state(target, cifar.model.state_dict(), source="x")
    agree(cifar, target)


def test_fresh_registers_may_stay():
    report = load_state(vit(2, registers=4), vit(1).model.state_dict(), source="x")
    assert report.missing == ("reg_token",)


def test_what_does_not_fit_is_an_error_and_changes_nothing():
    target = vit(2)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    for state, message in (
        (resnet(1).model.state_dict(), "none of its"),
        (vit(1, arch={**SMALL, "embed_dim": 32}).model.state_dict(), "other shapes"),
        (vit(1, arch={**SMALL, "depth": 1}).model.state_dict(), "are missing: blocks.1"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_state(target, state, source="x")
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_missing_weights_may_be_allowed():
    report = load_state(vit(2), vit(1, arch={**SMALL, "depth": 1}).model.state_dict(), source="x", strict=False)
    assert all(k.startswith("blocks.1.") for k in report.missing) and len(report.missing) == 12
