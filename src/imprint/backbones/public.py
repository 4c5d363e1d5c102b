"""The way back: an encoder's weights under the names of the public codes of DINO, DINOv2, MAE and BEiT."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from imprint.backbones.layouts import State
from imprint.backbones.stored import encoder_state
from imprint.backbones.timm_beit import TimmBeit
from imprint.backbones.timm_encoder import TimmEncoder
from imprint.backbones.timm_vit import TimmViT
from imprint.core.errors import ConfigError, unknown

PUBLIC = ("dino", "dinov2", "mae", "beit")
"""Layouts that `public_state` writes."""

_BLOCK = r"blocks\.\d+\."
_VIT = (
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)|"
    + _BLOCK
    + r"(norm[12]\.(weight|bias)|attn\.(qkv|proj)\.(weight|bias)|mlp\.fc[12]\.(weight|bias))"
)
_ALLOWED = {
    "dino": _VIT,
    "mae": _VIT,
    "dinov2": _VIT + r"|reg_token|mask_token|" + _BLOCK + r"ls[12]\.gamma",
    "beit": _VIT + r"|mask_token|fc_norm\.(weight|bias)|rel_pos_bias\.relative_position_bias_table|" + _BLOCK
    + r"(gamma_[12]|attn\.(q_bias|v_bias|relative_position_bias_table))",
}  # fmt: skip


def public_state(encoder: TimmEncoder, layout: str) -> State:
    """Return the encoder's weights under the names that a public code uses, on the CPU.

    `convert.load_state` reads each of them back to the same encoder. DINOv2 keeps a position for the class token where
    an encoder with registers has none: it becomes zeros, which is the same network.

    Args:
        encoder: a ViT or BEiT of the standard shape.
        layout: `dino`, `dinov2` (mask token, registers, LayerScale, SwiGLU), `mae` or `beit`.

    Raises:
        ConfigError: for an unknown layout, or an encoder with parts that the public code does not have.
    """
    if layout not in PUBLIC:
        raise unknown("public layout", layout, PUBLIC)
    state = encoder_state(encoder)
    if layout in ("dino", "mae"):
        state.pop("mask_token", None)  # of no use there: DINO masks nothing, MAE's belongs to its decoder
    extra = [name for name in state if not re.fullmatch(_ALLOWED[layout], name)]
    lacking = {"cls_token", "patch_embed.proj.weight"} | (set() if layout == "beit" else {"pos_embed"})
    lacking -= state.keys()
    kind = TimmBeit if layout == "beit" else TimmViT
    if extra or lacking or not isinstance(encoder, kind) or (layout != "beit" and isinstance(encoder, TimmBeit)):
        what = f"it has {', '.join(extra[:3])}" if extra else f"it lacks {', '.join(sorted(lacking))}"
        raise ConfigError(
            f"'{encoder.name}' does not fit the layout of {layout}: {what if extra or lacking else 'another family'}. "
            "The safetensors format carries every encoder."
        )
    if layout == "beit":
        return {k: v for name, tensor in state.items() for k, v in _beit(encoder, name, tensor)}
    if layout == "dinov2":
        return _dinov2(encoder, state)
    if encoder.prefix_tokens != 1 or state["pos_embed"].shape[1] != _patches(encoder) + 1:
        raise ConfigError(f"'{encoder.name}' does not fit the layout of {layout}, whose class token has a position.")
    return state


def _dinov2(encoder: TimmEncoder, state: State) -> State:
    width = encoder.embed_dim
    table = state["pos_embed"]
    if table.shape[1] == _patches(encoder):
        zeros = table.new_zeros(1, 1, width)
        state["pos_embed"] = torch.cat([zeros, table], dim=1)
    state["mask_token"] = state.get("mask_token", table.new_zeros(1, 1, width)).reshape(1, width)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
    if state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]:
        names = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}
        pattern = re.compile("|".join(re.escape(n) for n in names))
        state = {pattern.sub(lambda m: names[m[0]], k): v for k, v in state.items()}
    return state


def _beit(encoder: TimmEncoder, name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return a weight, and beside a table of relative positions the index into it that public checkpoints hold."""
    if not name.endswith("relative_position_bias_table"):
        return [(name, tensor)]
    index = name.replace("_bias_table", "_index")
    return [(name, tensor), (index, encoder.model.get_buffer(index).detach().cpu().clone())]


def _patches(encoder: TimmEncoder) -> int:
    return (encoder.image_size // encoder.patch_size) ** 2
