"""`Arch` in timm's words: each family of models names the same part differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from imprint.core.errors import ConfigError, unknown

_VIT = ("vision_transformer", "vision_transformer_hybrid", "deit")
_SWIN = ("swin_transformer", "swin_transformer_v2")
_STAGES = {
    "convnext": {"layers": "depths", "channels": "dims"},
    **dict.fromkeys(_SWIN, {"layers": "depths", "heads": "num_heads", "window": "window_size"}),
}


def family_arguments(name: str, family: str, arch: Mapping[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of `timm.create_model` for the fields of `Arch` (and further ones, as they are).

    Args:
        name: the encoder's name, for errors.
        family: timm's module that defines the model.
        arch: fields that are set.

    Raises:
        ConfigError: for a part that the family does not have.
    """
    given = {_STAGES.get(family, {}).get(k, k): v for k, v in arch.items()}
    relative = given.pop("relative_positions", None)
    if relative is not None:
        if family != "beit":
            raise ConfigError(
                f"encoder '{name}' has no relative position bias; choose a beit_* model (beit_base_patch16_224), whose "
                "sizes arch can change."
            )
        if relative not in ("none", "shared", "block"):
            raise unknown("relative positions", str(relative), ("none", "shared", "block"))
        given |= {"use_shared_rel_pos_bias": relative == "shared", "use_rel_pos_bias": relative == "block"}
        if not given.keys() & {"global_pool", "use_fc_norm"}:
            given.setdefault("pool", "avg")
    return given | _transformer_parts(name, family, given)


def _transformer_parts(name: str, family: str, given: dict[str, Any]) -> dict[str, Any]:
    parts = {k: given.pop(k) for k in ("mlp", "layer_scale", "pool", "absolute_positions") if k in given}
    if parts and family not in (*_VIT, "eva", "beit"):
        raise ConfigError(f"encoder '{name}': arch {', '.join(parts)} is for ViTs; leave it out or choose a ViT.")
    if given.get("qk_norm") and family == "beit":
        raise ConfigError(f"encoder '{name}': timm's BEiT has no norm of queries and keys; leave qk_norm out.")
    out: dict[str, Any] = {}
    if "layer_scale" in parts:
        if family == "eva" and not parts["layer_scale"]:
            raise ConfigError(f"encoder '{name}': leave layer_scale out; Eva models without it are named so in timm.")
        out["init_values"] = float(parts["layer_scale"])
    if "pool" in parts:
        out |= {"global_pool": parts["pool"], "fc_norm" if family in _VIT else "use_fc_norm": False}
    if "absolute_positions" in parts:
        learned = bool(parts["absolute_positions"])
        out |= {"pos_embed": "learn" if learned else "none"} if family in _VIT else {"use_abs_pos_emb": learned}
    if parts.get("mlp", "mlp") not in ("mlp", "swiglu"):
        raise unknown("mlp", str(parts["mlp"]), ("mlp", "swiglu"))
    if "mlp" in parts and family in _VIT:
        out |= {"mlp_layer": swiglu, "act_layer": nn.SiLU} if parts["mlp"] == "swiglu" else {"mlp_layer": _mlp()}
    elif "mlp" in parts:
        out["swiglu_mlp"] = parts["mlp"] == "swiglu"
    return out


def swiglu_width(hidden: int) -> int:
    """Return the hidden width of a SwiGLU with as many weights as an MLP of `hidden`, a multiple of 8 (DINOv2)."""
    return (hidden * 2 // 3 + 7) // 8 * 8


def swiglu(in_features: int, hidden_features: int, **others: Any) -> nn.Module:
    """Return timm's packed SwiGLU with DINOv2's width."""
    from timm.layers.mlp import SwiGLUPacked

    others.pop("act_layer", None)
    built: nn.Module = SwiGLUPacked(in_features, hidden_features=2 * swiglu_width(hidden_features), **others)
    return built


def _mlp() -> type[nn.Module]:
    from timm.layers.mlp import Mlp

    kind: type[nn.Module] = Mlp
    return kind
