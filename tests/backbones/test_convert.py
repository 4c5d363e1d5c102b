import argparse
import re

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.convert import load_state, load_weights
from imprint.backbones.infer import infer_config
from imprint.backbones.layouts import unwrap
from imprint.backbones.public import public_state
from imprint.backbones.stored import encoder_state
from imprint.core.errors import CheckpointError, ConfigError

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


PUBLIC = {
    "dino": ("vit_tiny_patch16_224", {}),
    "mae": ("vit_tiny_patch16_224", {"positions": "sincos"}),
    "dinov2": ("vit_small_patch14_dinov2", {"mask_token": True}),
    "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {"mask_token": True}),
    "dinov2_swiglu": ("vit_giant_patch14_dinov2", {"arch": {"mlp_ratio": 4.0}}),
    "dinov2_own_swiglu": ("vit_tiny_patch16_224", {"arch": {"mlp": "swiglu", "layer_scale": 1e-5}, "registers": 4}),
    "beit": ("beit_base_patch16_224", {}),
    "beit_shared": (
        "beit_base_patch16_224",
        {"arch": {"relative_positions": "shared", "absolute_positions": False, "pool": "token"}, "mask_token": True},
    ),
}


def public(kind, seed=0, **more):
    name, options = PUBLIC[kind]
    torch.manual_seed(seed)
    arch = {**SMALL, **options.get("arch", {})}
    encoder = build_encoder(name, **{"image_size": 32, "patch_size": 8, **options, **more, "arch": arch})
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return encoder.eval()


@pytest.mark.parametrize("kind", PUBLIC)
def test_an_encoder_goes_into_a_public_layout_and_back_without_loss(kind):
    layout = kind.split("_")[0]
    source, target = public(kind, 1), public(kind, 2)
    state = public_state(source, layout)
    report = load_state(target, add("teacher.backbone.", state), source=layout)
    assert report.unexpected in ((), ("mask_token",)) and set(report.missing) <= {"mask_token"}
    own = {k: v for k, v in encoder_state(source).items() if layout not in ("dino", "mae") or k != "mask_token"}
    back = encoder_state(target)
    assert [k for k, v in own.items() if not torch.equal(back[k], v)] == []
    again = public_state(target, layout)
    assert again.keys() == state.keys() and all(torch.equal(again[k], v) for k, v in state.items())


@pytest.mark.parametrize("kind", ["dino", "mae", "dinov2", "dinov2_registers", "dinov2_swiglu", "beit", "beit_shared"])
def test_timms_own_readers_of_public_checkpoints_agree(kind):
    """timm's conversion of the public layout gives the same network as ours."""
    from timm.models import beit, vision_transformer

    source = public(kind, 1)
    state = public_state(source, kind.split("_")[0])
    theirs = public(kind, 2).model
    read = (beit if kind.startswith("beit") else vision_transformer).checkpoint_filter_fn(dict(state), theirs)
    problems = theirs.load_state_dict(read, strict=False)
    assert problems.missing_keys == [] and set(problems.unexpected_keys) <= {"mask_token"}
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), source(x).pooled_BD, rtol=1e-5, atol=1e-5)


def test_a_public_dinov2_with_a_position_for_its_class_token_becomes_the_same_network():
    """What DINOv2 itself stores: class token and position apart, also beside registers."""
    source = public("dinov2_registers", 1)
    state = public_state(source, "dinov2")
    assert {"register_tokens", "mask_token"} <= state.keys() and state["mask_token"].shape == (1, 64)
    position = torch.randn(64)
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"][0, 0] = position
    target = public("dinov2_registers", 2)
    load_state(target, state, source="dinov2")
    agree(source, target, tolerance=1e-3)


def test_public_names_of_a_swiglu_are_dinov2s():
    names = public_state(public("dinov2_own_swiglu"), "dinov2")
    assert "blocks.0.mlp.w12.weight" in names and "blocks.1.mlp.w3.bias" in names
    assert names["blocks.0.mlp.w3.weight"].shape == (64, 176)  # 2/3 of 256, rounded up to 8


def test_infer_reads_public_layouts():
    for kind in ("dino", "dinov2_own_swiglu", "beit_shared", "beit"):
        source = public(kind, 1)
        config = infer_config(public_state(source, kind.split("_")[0]), "x")
        target = build_encoder(**config).eval()
        load_state(target, public_state(source, kind.split("_")[0]), source="x", strict=False)
        agree(source, target)


def test_a_shared_bias_serves_every_block_and_tables_are_resized():
    """What BEiT's fine-tuning code does with a pretrained checkpoint."""
    source = public("beit_shared", 1)
    arch = {"relative_positions": "block", "absolute_positions": False, "pool": "token", **SMALL}
    torch.manual_seed(0)
    target = build_encoder("beit_base_patch16_224", image_size=32, patch_size=8, arch=arch).eval()
    state = public_state(source, "beit")
    report = load_state(target, state, source="beit")
    assert report.adapted == ("the shared relative positions serve every block",)
    agree(source, target)
    large = public("beit_shared", 2, image_size=64)
    report = load_state(large, state, source="beit")
    assert report.adapted == ("relative positions interpolated from 4x4 to 8x8",)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(source(x).pooled_BD, large(x).pooled_BD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "layout", "message"),
    [
        ("dino", "dinov9", "Did you mean 'dinov2'"),
        ("dino", "beit", "another family"),
        ("beit", "dino", "it has"),
        ("dinov2", "mae", "ls1"),
        ("dinov2_registers", "dino", "reg_token"),
    ],
)
def test_what_a_public_layout_cannot_hold_is_refused(kind, layout, message):
    with pytest.raises(ConfigError, match=message):
        public_state(public(kind), layout)
