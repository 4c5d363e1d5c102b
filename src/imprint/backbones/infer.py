"""Read the architecture off a checkpoint that does not name it: the standard ViTs, BEiTs and ResNets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from imprint.backbones.layouts import State, candidates
from imprint.backbones.parts import swiglu_width
from imprint.backbones.timm_beit import CLASS_DISTANCES
from imprint.core.errors import CheckpointError

_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
_HEAD_WIDTH = 64
"""Width of one attention head in every standard ViT (Ti, S, B, L, g); a table of weights does not tell it."""


def infer_config(state: Mapping[str, Tensor], source: str, num_heads: int | None = None) -> dict[str, Any]:
    """Return arguments for `build_encoder` that fit the network in `state`.

    Args:
        state: names to tensors, in any known layout.
        source: named in messages.
        num_heads: attention heads where they are known; None takes the standard 64 columns a head.

    Raises:
        CheckpointError: when it is no standard ViT or ResNet, saying how to name the model.
    """
    for found in candidates(state):
        config = _vit(found.state, num_heads) if "patch_embed.proj.weight" in found.state else _resnet(found.state)
        if config is not None:
            return config
    raise CheckpointError(
        f"{source}: its weights do not tell which model they are of. Name it: "
        f"build_encoder(NAME, image_size=N, weights='{source}'), or --encoder NAME --encoder.weights FILE."
    )


def config_beside(folder: Path, state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return arguments for `build_encoder` for a folder in timm's or transformers' layout, from its config.json.

    Raises:
        CheckpointError: when neither the file nor the weights tell the model.
    """
    path = folder / "config.json"
    described = json.loads(path.read_text()) if path.is_file() else {}
    if "architecture" in described:  # timm, and transformers' TimmWrapper
        arguments = dict(described.get("model_args") or {})
        channels, height, _ = described["pretrained_cfg"]["input_size"]
        own = {"image_size": arguments.pop("img_size", height), "channels": arguments.pop("in_chans", channels)}
        own["patch_size"] = arguments.pop("patch_size", None)
        return {"name": described["architecture"], **own, "arch": arguments}
    return infer_config(state, source, described.get("num_attention_heads"))


def _vit(state: State, num_heads: int | None) -> dict[str, Any] | None:
    patch = state["patch_embed.proj.weight"]
    blocks = {int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k))}
    positions, cls = state.get("pos_embed"), state.get("cls_token")
    hidden = state.get("blocks.0.mlp.fc1.weight")
    if patch.ndim == 4 and blocks and any(k.endswith("relative_position_bias_table") for k in state):
        return _beit(state, len(blocks))
    if patch.ndim != 4 or positions is None or cls is None or hidden is None or not blocks:
        return None
    num_heads = num_heads or patch.shape[0] // _HEAD_WIDTH
    if not num_heads or patch.shape[0] % num_heads:
        return None
    width, side = patch.shape[0], patch.shape[-1]
    arch: dict[str, Any] = {"embed_dim": width, "depth": len(blocks), "num_heads": num_heads}
    read = state["blocks.0.mlp.fc2.weight"].shape[1]
    if hidden.shape[0] == 2 * read:
        arch["mlp"] = "swiglu"
        if swiglu_width(4 * width) != read:
            arch["mlp_ratio"] = 1.5 * read / width
    elif hidden.shape[0] != read:
        return None
    elif hidden.shape[0] != 4 * width:
        arch["mlp_ratio"] = hidden.shape[0] / width
    if "blocks.0.ls1.gamma" in state:
        arch["init_values"] = 1.0
    if "blocks.0.attn.qkv.bias" not in state:
        arch["qkv_bias"] = False
    registers = state["reg_token"].shape[1] if "reg_token" in state else None
    return {
        "name": "vit_base_patch16_224",
        "image_size": math.isqrt(positions.shape[-2]) * side,
        "channels": patch.shape[1],
        "patch_size": side,
        "registers": registers,
        "arch": arch,
    }


def _beit(state: State, depth: int) -> dict[str, Any] | None:
    patch, hidden = state["patch_embed.proj.weight"], state.get("blocks.0.mlp.fc1.weight")
    tables = [v for k, v in state.items() if k.endswith("relative_position_bias_table")]
    grid = (math.isqrt(tables[0].shape[0] - CLASS_DISTANCES) + 1) // 2
    if hidden is None or (2 * grid - 1) ** 2 + CLASS_DISTANCES != tables[0].shape[0]:
        return None
    shared = "rel_pos_bias.relative_position_bias_table" in state
    gamma = state.get("blocks.0.gamma_1")
    arch = {
        "embed_dim": patch.shape[0],
        "depth": depth,
        "num_heads": tables[0].shape[1],
        "mlp_ratio": hidden.shape[0] / patch.shape[0],
        "layer_scale": 0.0 if gamma is None else 0.1,
        "absolute_positions": "pos_embed" in state,
        "relative_positions": "shared" if shared else "block",
    }
    side = patch.shape[-1]
    if "fc_norm.weight" in state:  # a fine-tuned model pools first, as timm's do
        arch |= {"global_pool": "avg", "use_fc_norm": True}
    else:
        arch["pool"] = "token"
    return {
        "name": "beit_base_patch16_224",
        "image_size": grid * side,
        "channels": patch.shape[1],
        "patch_size": side,
        "arch": arch,
    }


def _resnet(state: State) -> dict[str, Any] | None:
    stem = state.get("conv1.weight")
    if stem is None or stem.ndim != 4:
        return None
    layers = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{i}.")}) for i in range(1, 5))
    name = _RESNETS.get(("layer1.0.conv3.weight" in state, layers))
    if name is None or stem.shape[0] != 64:
        return None
    cifar = stem.shape[-1] == 3
    size = 32 if cifar else 224
    return {"name": name, "image_size": size, "channels": stem.shape[1], "stem": "cifar" if cifar else "imagenet"}
