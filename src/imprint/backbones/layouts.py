"""Names of weights in public checkpoints, translated to timm's: DINO, DINOv2, DINOv3, MAE, MoCo, BEiT-style wrappers,
torchvision, Hugging Face, and ResNets stored as a bare nn.Sequential.

Each layout is recognised by an anchor, the name of its first weight; what stands before the anchor is the prefix that
wrapped it (`module.encoder_q.`, `teacher.backbone.`), so any nesting is understood without a list of prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]

# Where one file holds several copies of a network, the one that its own paper evaluates comes first.
_WRAPPERS = (
    "teacher", "target_encoder", "model_ema", "state_dict_ema", "ema", "model", "state_dict", "model_state_dict",
    "student", "encoder", "backbone", "net", "module", "weights",
)  # fmt: skip
_PREFERRED_PREFIXES = (
    "", "teacher", "target", "encoder_q", "base_encoder", "online", "backbone", "student", "module", "encoder_k",
    "momentum",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A network found in a checkpoint.

    Attributes:
        layout: name of the naming scheme.
        prefix: what stood before its names.
        state: its tensors under timm's names.
    """

    layout: str
    prefix: str
    state: State


def unwrap(loaded: object) -> State:
    """Return the mapping of names to tensors inside a loaded checkpoint, looking through known wrappers."""
    seen = 0
    while isinstance(loaded, Mapping) and seen < 8:
        tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
        if tensors and len(tensors) >= sum(isinstance(v, Mapping) for v in loaded.values()):
            return tensors
        inner = next((loaded[k] for k in _WRAPPERS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            return tensors
        loaded, seen = inner, seen + 1
    return {}


def candidates(state: Mapping[str, Tensor]) -> list[Found]:
    """Return every network recognised in `state`, the preferred prefix first."""
    found: list[Found] = []
    for layout, (anchor, translate) in LAYOUTS.items():
        for name in state:
            if not name.endswith(anchor) or (name != anchor and name[: -len(anchor)][-1] not in "._"):
                continue
            prefix = name[: -len(anchor)]
            inner = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
            translated = translate(inner)
            if translated:
                found.append(Found(layout, prefix, translated))
    return sorted(found, key=lambda f: _preference(f.prefix))


def _preference(prefix: str) -> tuple[int, int]:
    parts = prefix.strip(".").split(".") if prefix else [""]
    ranks = [i for i, word in enumerate(_PREFERRED_PREFIXES) if word and any(word in part for part in parts)]
    return (min(ranks, default=0 if not prefix else len(_PREFERRED_PREFIXES)), len(prefix))


def _rename(state: State, rules: list[tuple[str, str]]) -> State:
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    out: State = {}
    for name, tensor in state.items():
        for pattern, new in compiled:
            name = pattern.sub(new, name)
        out[name] = tensor
    return out


def _timm_vit(state: State) -> State:
    """Take timm's, DINO's, DINOv2's, DINOv3's, MAE's, MoCo v3's and BEiT's ViTs, which share almost all names."""
    computed = (".periods", ".bias_mask", ".relative_position_index")
    return _rename(
        {k: v for k, v in state.items() if not k.endswith(computed) and k != "local_cls_norm"},
        [
            (r"^(register_tokens|storage_tokens)$", "reg_token"),
            (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),  # DINOv2 trained in chunks: blocks.CHUNK.INDEX.
            (r"\.mlp\.w12\.", ".mlp.fc1."),
            (r"\.mlp\.w3\.", ".mlp.fc2."),
        ],
    )


def _torchvision_vit(state: State) -> State:
    return _rename(
        state,
        [
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.ln\.", "norm."),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"\.ln_1\.", ".norm1."),
            (r"\.ln_2\.", ".norm2."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
            (r"^heads\.head\.", "head."),
        ],
    )


def _hugging_face_vit(state: State) -> State:
    """Translate transformers' ViT and Dinov2 (with or without registers); queries, keys and values are joined."""
    renamed = _rename(
        state,
        [
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.mask_token$", "mask_token"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^layernorm\.", "norm."),
            (r"^(?:encoder\.layer|layers|encoder\.layers)\.(\d+)\.", r"blocks.\1."),
            (r"\.(?:layernorm_before|norm1)\.", ".norm1."),
            (r"\.(?:layernorm_after|norm2)\.", ".norm2."),
            (r"\.(?:attention\.attention|attention)\.(?:query|q_proj)\.", ".attn.q."),
            (r"\.(?:attention\.attention|attention)\.(?:key|k_proj)\.", ".attn.k."),
            (r"\.(?:attention\.attention|attention)\.(?:value|v_proj)\.", ".attn.v."),
            (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
            (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        ],
    )
    out: State = {}
    for name, tensor in renamed.items():
        match = re.fullmatch(r"(blocks\.\d+\.attn\.)([qkv])\.(weight|bias)", name)
        if match is None:
            out[name] = tensor
        elif match[2] == "q":
            parts = [renamed.get(f"{match[1]}{part}.{match[3]}") for part in "qkv"]
            if all(p is not None for p in parts):
                out[f"{match[1]}qkv.{match[3]}"] = torch.cat([p for p in parts if p is not None])
    return out


def _resnet(state: State) -> State:
    """Take torchvision's, timm's and MoCo's ResNets, which share all names."""
    return state if "layer1.0.conv1.weight" in state else {}


def _sequential_resnet(state: State) -> State:
    """Translate a ResNet kept as nn.Sequential(conv1, bn1, relu, maxpool, layer1..4), as lightly's examples do."""
    if not any(k.startswith("4.0.conv1.") for k in state):
        return {}
    names = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    split = ((k.partition("."), v) for k, v in state.items())
    return {f"{names[head]}.{tail}": v for (head, _, tail), v in split if head in names}


LAYOUTS: dict[str, tuple[str, Callable[[State], State]]] = {
    "timm ViT": ("patch_embed.proj.weight", _timm_vit),
    "torchvision ViT": ("conv_proj.weight", _torchvision_vit),
    "Hugging Face ViT": ("embeddings.patch_embeddings.projection.weight", _hugging_face_vit),
    "ResNet": ("conv1.weight", _resnet),
    "sequential ResNet": ("0.weight", _sequential_resnet),
}
"""Layout -> (name of its first weight, translation to timm's names)."""
