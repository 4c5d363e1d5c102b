"""torchvision's names: ResNets and plain ViTs as a state dict that `torchvision.models` loads strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbones.build import STEM_STRIDES
from imprint.backbones.pixel_transformer import Backbone
from imprint.backbones.stored import encoder_state, write_aside
from imprint.backbones.timm_vit import TimmViT
from imprint.core.errors import ConfigError
from imprint.export.check import ExportResult, Subject, compare, reference
from imprint.export.recipe import stem_lines

_RESNETS = {
    "resnet18": "resnet18", "resnet34": "resnet34", "resnet50": "resnet50", "resnet101": "resnet101",
    "resnet152": "resnet152", "resnext50_32x4d": "resnext50_32x4d", "wide_resnet50_2": "wide_resnet50_2",
    "wide_resnet101_2": "wide_resnet101_2",
}  # fmt: skip
_VIT_RULES = [
    (r"^cls_token$", "class_token"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm1\.", ".ln_1."),
    (r"\.norm2\.", ".ln_2."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
]


def export_torchvision(source: Subject, out: Path) -> ExportResult:
    """Write `out` (a .safetensors file, or a folder that gets model.safetensors) with torchvision's names, no head.

    Raises:
        ConfigError: for a model that torchvision does not have.
        CheckpointError: when it cannot be written or reads back differently.
    """
    from safetensors.torch import load_file, save

    path = out if out.suffix == ".safetensors" else out / "model.safetensors"
    if isinstance(source.encoder, TimmViT):
        lines, model = _vit(source.encoder)
        state = _renamed(encoder_state(source.encoder))
    else:
        lines, model = _resnet(source.encoder)
        state = encoder_state(source.encoder)
    write_aside(path, save(state, metadata={"format": "pt"}))
    model.load_state_dict(load_file(path))
    images = source.images()
    ours = reference(source, images)
    with torch.no_grad():
        theirs = model.eval()(images)
    diff = compare(path, {"pooled": ours.pooled_BD}, {"pooled": theirs}, tolerance=1e-4)
    load = f"{lines}\nmodel.load_state_dict(safetensors.torch.load_file({str(path)!r}))\nmodel.eval()"
    return ExportResult(format="torchvision", path=path, max_abs_diff=diff, how_to_load=load)


def _resnet(encoder: Backbone) -> tuple[str, nn.Module]:
    import torchvision

    config = encoder.config
    base = str(config["name"]).split(".")[0]
    if base not in _RESNETS or config["arch"] or (encoder.channels != 3 and config["stem"] == "imagenet"):
        raise ConfigError(
            f"torchvision has no model equal to '{encoder.name}' ({encoder.channels} channels"
            f"{', changed arch' if config['arch'] else ''}). It has {', '.join(_RESNETS)} and plain ViTs, "
            "all for 3 channels; use --format timm, safetensors or onnx."
        )
    model: Any = getattr(torchvision.models, _RESNETS[base])()
    lines = f"import torch, torchvision, safetensors.torch\nmodel = torchvision.models.{_RESNETS[base]}()"
    model.fc = nn.Identity()
    lines += "\nmodel.fc = torch.nn.Identity()"
    if config["stem"] != "imagenet":
        model.conv1 = nn.Conv2d(encoder.channels, 64, 3, stride=STEM_STRIDES[config["stem"]], padding=1, bias=False)
        model.maxpool = nn.Identity()
        lines += "\n" + stem_lines(encoder)
    return lines, model


def _vit(encoder: TimmViT) -> tuple[str, nn.Module]:
    import torchvision

    model: Any = encoder.model
    state = encoder.model.state_dict()
    odd = sorted({k for k in _renamed(state) if not re.match(r"(class_token$|conv_proj\.|encoder\.)", k)})
    odd += [k for k in state if re.search(r"\.(ls[12]\.gamma|q_norm\.|k_norm\.)", k)]
    if state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]:
        odd.append("a SwiGLU")
    plain = encoder.prefix_tokens == 1 and encoder.position_prefix == 1 and "blocks.0.attn.qkv.bias" in state
    if odd or not plain or encoder.channels != 3 or getattr(model, "global_pool", "") != "token":
        reason = f"it has {odd[0]}" if odd else f"{encoder.channels} channels, {encoder.prefix_tokens} prefix tokens"
        raise ConfigError(
            f"torchvision's ViT cannot hold '{encoder.name}' ({reason}): it knows one class token with a position, "
            "learned positions, 3 channels. Use --format hf, timm, safetensors or onnx."
        )
    arguments = {
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "num_layers": encoder.depth,
        "num_heads": model.blocks[0].attn.num_heads,
        "hidden_dim": encoder.embed_dim,
        "mlp_dim": state["blocks.0.mlp.fc1.weight"].shape[0],
    }
    built: Any = torchvision.models.VisionTransformer(**arguments)
    built.heads = nn.Identity()
    given = ", ".join(f"{k}={v}" for k, v in arguments.items())
    return (
        f"import torch, torchvision, safetensors.torch\nmodel = torchvision.models.VisionTransformer({given})\n"
        "model.heads = torch.nn.Identity()"
    ), built


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, new in _VIT_RULES:
            name = re.sub(pattern, new, name)
        out[name] = tensor
    return out
