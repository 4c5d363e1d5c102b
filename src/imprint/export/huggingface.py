"""Hugging Face folders: transformers' own ViT and DINOv2 layouts where they fit, timm's folder (TimmWrapper) otherwise.

Either way `transformers.AutoModel.from_pretrained(FOLDER)` loads it; the folder holds the normalisation, too.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbones.stored import encoder_state, write_aside
from imprint.backbones.timm_vit import TimmViT
from imprint.core.errors import MissingExtra
from imprint.export.check import ExportResult, Subject, compare, reference
from imprint.export.recipe import refuse_cifar_stem
from imprint.export.timm_folder import spare_other_config, write_timm_folder


def export_hf(source: Subject, out: Path) -> ExportResult:
    """Write the folder `out` for transformers.

    Raises:
        MissingExtra: without transformers, which must read back what is written.
        ConfigError: for an encoder that neither transformers nor timm can build (a CIFAR stem).
        CheckpointError: when it cannot be written or reads back differently.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "text", "export to the Hugging Face layout") from error
    spare_other_config(out)
    model = _native(source)
    if model is not None:
        _write_model(model, out)
        _write_preprocessor(source, out)
    else:
        refuse_cifar_stem(source.encoder, "Hugging Face")
        write_timm_folder(source, out)
    images = source.images()
    ours = reference(source, images)
    # Without this, transformers adds a random pooler to a ViT that has none.
    options = {"add_pooling_layer": False} if isinstance(model, transformers.ViTModel) else {}
    with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
        theirs = transformers.AutoModel.from_pretrained(str(out), **options).eval()(pixel_values=images)
    if model is not None:
        expected = torch.cat(
            [t for t in (_first(ours.cls_BD), ours.registers_BRD, ours.patches_BND) if t is not None], 1
        )
        pairs = {"last_hidden_state": expected}, {"last_hidden_state": theirs.last_hidden_state}
    else:
        pairs = {"pooler_output": ours.pooled_BD}, {"pooler_output": theirs.pooler_output}
    diff = compare(out, *pairs, tolerance=1e-4)
    given = "".join(f", {k}={v}" for k, v in options.items())
    lines = f"from transformers import AutoModel\nmodel = AutoModel.from_pretrained({str(out)!r}{given}).eval()"
    return ExportResult(format="hf", path=out, max_abs_diff=diff, how_to_load=lines)


def _first(cls_BD: Tensor | None) -> Tensor | None:
    return None if cls_BD is None else cls_BD.unsqueeze(1)


def _native(source: Subject) -> nn.Module | None:
    """Return transformers' own model with our weights, or None when it has none for this encoder."""
    encoder = source.encoder
    if not isinstance(encoder, TimmViT):
        return None
    state = encoder_state(encoder)
    allowed = (
        r"cls_token|reg_token|pos_embed|norm\.(weight|bias)|patch_embed\.proj\.(weight|bias)|blocks\.\d+\."
        r"(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|blocks\.\d+\.ls[12]\.gamma"
    )
    width = encoder.embed_dim
    hidden = state.get("blocks.0.mlp.fc1.weight", torch.empty(0)).shape[0]
    model: Any = encoder.model
    registers = encoder.prefix_tokens - 1
    plain = (
        all(re.fullmatch(allowed, k) for k in state)
        and {"cls_token", "pos_embed", "blocks.0.attn.qkv.bias"} <= state.keys()
        and hidden % width == 0
        and registers == (state["reg_token"].shape[1] if "reg_token" in state else 0)
        and encoder.position_prefix in (0, 1)
        and isinstance(model.blocks[0].mlp.act, nn.GELU)
        and isinstance(model.norm, nn.LayerNorm)
    )
    if not plain:
        return None
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ViTConfig,
        ViTModel,
    )

    shape: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "num_channels": encoder.channels,
        "layer_norm_eps": model.norm.eps,
    }
    built: nn.Module
    if registers:
        built = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**shape, mlp_ratio=hidden // width, num_register_tokens=registers)
        )
    elif "blocks.0.ls1.gamma" in state:
        built = Dinov2Model(Dinov2Config(**shape, mlp_ratio=hidden // width))
    else:
        built = ViTModel(ViTConfig(**shape, intermediate_size=hidden), add_pooling_layer=False)
    own = built.state_dict()
    built.load_state_dict({name: _value(name, own[name], state) for name in own})
    return built


def _value(name: str, wanted: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """Return our tensor for one of transformers' names."""
    simple = {
        "embeddings.cls_token": "cls_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    if name in simple:
        return state[simple[name]]
    if name == "embeddings.mask_token":
        return torch.zeros_like(wanted)
    if name == "embeddings.position_embeddings":
        table = state["pos_embed"]
        missing = wanted.shape[1] - table.shape[1]  # positions without one for the class token: it gets zeros
        return torch.cat([table.new_zeros(1, missing, table.shape[2]), table], dim=1)
    match = re.search(r"layers?\.(\d+)\.(.*)", name)
    if match is None:
        raise KeyError(name)
    block, rest = f"blocks.{match[1]}", match[2]
    rules = [
        (r"(?:layernorm_before|norm1)\.(.*)", r"norm1.\1"),
        (r"(?:layernorm_after|norm2)\.(.*)", r"norm2.\1"),
        (r"attention\.(?:output\.dense|o_proj)\.(.*)", r"attn.proj.\1"),
        (r"(?:intermediate\.dense|mlp\.fc1)\.(.*)", r"mlp.fc1.\1"),
        (r"(?:output\.dense|mlp\.fc2)\.(.*)", r"mlp.fc2.\1"),
    ]
    for pattern, ours in rules:
        if (found := re.fullmatch(pattern, rest)) is not None:
            return state[f"{block}.{found.expand(ours)}"]
    if (found := re.fullmatch(r"layer_scale([12])\.lambda1", rest)) is not None:
        gamma = state.get(f"{block}.ls{found[1]}.gamma")
        return torch.ones_like(wanted) if gamma is None else gamma
    found = re.fullmatch(r"attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)", rest)
    if found is None:
        raise KeyError(name)
    return state[f"{block}.attn.qkv.{found[2]}"].chunk(3)["qkv".index(found[1][0])].contiguous()


def _write_model(model: Any, out: Path) -> None:
    """Let transformers write aside, then move each file into place."""
    with tempfile.TemporaryDirectory() as aside:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            model.save_pretrained(aside)
        for file in sorted(Path(aside).iterdir()):
            write_aside(out / file.name, file.read_bytes())


def _write_preprocessor(source: Subject, out: Path) -> None:
    size = source.encoder.image_size
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(source.mean),
        "image_std": list(source.std),
    }
    write_aside(out / "preprocessor_config.json", (json.dumps(settings, indent=2) + "\n").encode())
