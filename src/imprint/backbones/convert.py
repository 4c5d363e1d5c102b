"""Put weights from elsewhere into an encoder: find the network in a file, fit what may differ, report the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from imprint.backbones.dual_build import image_tower
from imprint.backbones.layouts import State, candidates
from imprint.backbones.pixel_transformer import Backbone, PixelTransformer
from imprint.backbones.read import read_state
from imprint.backbones.timm_beit import CLASS_DISTANCES, TimmBeit, resized_table
from imprint.backbones.timm_swin import TimmSwin
from imprint.backbones.timm_vit import POSITION_STYLE, TimmViT
from imprint.core.errors import CheckpointError
from imprint.ops.positions import interpolate_positions

_OPTIONAL = ("mask_token", "reg_token", "dist_token")
"""Weights an encoder may have of its own: they keep their fresh initialisation when the source lacks them."""


@dataclass(frozen=True)
class LoadReport:
    """What became of each weight.

    Attributes:
        source: where the weights came from.
        layout: naming scheme recognised there.
        prefix: what stood before its names.
        loaded: names that were taken over.
        adapted: what was changed to fit, one sentence each.
        missing: the encoder's names that the source lacks; they keep their initialisation.
        unexpected: the source's names (under `prefix`) that the encoder has no place for: heads, decoders.
    """

    source: str
    layout: str
    prefix: str
    loaded: tuple[str, ...]
    adapted: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line for a log."""
        text = f"{len(self.loaded)} weights from {self.source} ({self.layout}"
        text += f", prefix '{self.prefix}')" if self.prefix else ")"
        for name, values in (("adapted", self.adapted), ("missing", self.missing), ("not used", self.unexpected)):
            if values:
                text += f"; {name}: {_some(values)}"
        return text


def load_weights(encoder: Backbone, path: str | Path, *, strict: bool = True) -> LoadReport:
    """Load a local .safetensors, .pth/.pt/.tar file or a folder with one into `encoder`; nothing in it is executed.

    Raises:
        CheckpointError: for an unreadable file, or one that does not fit (see `load_state`).
    """
    state = read_state(path)
    own = image_tower(state) if "log_scale" in state else state  # of a model of images and texts its image tower
    return load_state(encoder, own, source=str(path), strict=strict)


def load_state(encoder: Backbone, state: Mapping[str, Tensor], *, source: str, strict: bool = True) -> LoadReport:
    """Load tensors under any known naming into `encoder`.

    Positions are interpolated to the encoder's grid, the first layer is fitted to its channels and patch size, and
    positions of prefix tokens are added to these tokens where the encoder keeps none for them.

    Args:
        encoder: receives the weights in place.
        state: names to tensors.
        source: named in messages.
        strict: refuse a source that lacks weights of the encoder (fresh mask, register and distillation tokens aside).

    Raises:
        CheckpointError: when nothing matches, shapes differ, or (with `strict`) weights are missing.
    """
    target: State = dict(encoder.model.state_dict())
    if isinstance(encoder, TimmViT | TimmSwin) and encoder.mask_token is not None:
        target["mask_token"] = encoder.mask_token
    layout, prefix, found = _best(state, target)
    if not found.keys() & target.keys():
        raise CheckpointError(
            f"{source}: none of its {len(state)} weights belong to '{encoder.name}' (it begins with "
            f"{_some(tuple(state))}). Give the encoder it was made for."
        )
    found, adapted = _fit(encoder, found, target)
    fresh_stem = encoder.config["stem"] != "imagenet" and (
        "conv1.weight" not in found or _misfit(found, target, "conv1.weight")
    )
    if fresh_stem:
        found = {k: v for k, v in found.items() if not k.startswith("conv1.")}
        adapted.append("the stem stays fresh (a 3x3 stem has another kernel)")
    wrong = [
        f"{k} {tuple(found[k].shape)} for {tuple(v.shape)}" for k, v in target.items() if _misfit(found, target, k)
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: {len(wrong)} weights have other shapes than '{encoder.name}' needs: {_some(tuple(wrong))}. "
            "Build the encoder it was made for (name, patch_size, arch, stem)."
        )
    missing = [k for k in target if k not in found and not k.endswith("num_batches_tracked")]
    essential = [k for k in missing if k not in _OPTIONAL and not (fresh_stem and k.startswith("conv1."))]
    if strict and essential:
        raise CheckpointError(
            f"{source}: {len(essential)} of {len(target)} weights of '{encoder.name}' are missing: "
            f"{_some(tuple(essential))}. Build the encoder it was made for."
        )
    loaded = [k for k in target if k in found]
    with torch.no_grad():
        for key in loaded:
            target[key].copy_(found[key])
    unexpected = tuple(k for k in found if k not in target)
    return LoadReport(source, layout, prefix, tuple(loaded), tuple(adapted), tuple(missing), unexpected)


def _best(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> tuple[str, str, State]:
    """Return (layout, prefix, tensors by timm name) of the network in `state` that covers most of `target`."""
    options = [(f.layout, f.prefix, f.state) for f in candidates(state)]
    prefixes: dict[str, int] = {}
    for name in state:  # timm's other families have no anchor: take the prefix under which most names match
        cuts = [-1, *(i for i, letter in enumerate(name) if letter == ".")]
        for cut in cuts:
            if name[cut + 1 :] in target:
                prefixes[name[: cut + 1]] = prefixes.get(name[: cut + 1], 0) + 1
    if prefixes:
        prefix = max(sorted(prefixes), key=lambda p: prefixes[p])
        options.append(("timm", prefix, {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}))
    return max(options, key=lambda o: len(o[2].keys() & target.keys()), default=("none", "", {}))


def _misfit(found: State, target: Mapping[str, Tensor], key: str) -> bool:
    return key in found and found[key].shape != target[key].shape


def _fit(encoder: Backbone, found: State, target: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    found, adapted = dict(found), []
    for norm, other in (("norm", "fc_norm"), ("fc_norm", "norm")):  # same norm, before or after pooling
        if f"{norm}.weight" in target and f"{norm}.weight" not in found and f"{other}.weight" in found:
            for part in ("weight", "bias"):
                if f"{other}.{part}" in found:
                    found[f"{norm}.{part}"] = found.pop(f"{other}.{part}")
            adapted.append(f"{other} serves as {norm}")
    _fit_first_layer(found, target, adapted)
    if "mask_token" in found:
        found["mask_token"] = found["mask_token"].reshape(1, 1, -1)
    if isinstance(encoder, TimmBeit):
        _fit_relative(encoder, found, target, adapted)
    if "pos_embed" in found and "pos_embed" in target and isinstance(encoder, TimmViT | PixelTransformer):
        _fit_positions(encoder, found, target, adapted)
    return found, adapted


def _fit_relative(encoder: TimmBeit, found: State, target: Mapping[str, Tensor], adapted: list[str]) -> None:
    """Give every block the shared bias where it has one of its own (BEiT's fine-tuning code), and resize tables."""
    shared = found.get("rel_pos_bias.relative_position_bias_table")
    ending = ".attn.relative_position_bias_table"
    own = [k for k in target if k.endswith(ending)]
    if shared is not None and own and not any(k in found for k in own):
        for name in own:
            found[name] = shared.clone()
        if "rel_pos_bias.relative_position_bias_table" not in target:
            del found["rel_pos_bias.relative_position_bias_table"]
        adapted.append("the shared relative positions serve every block")
    grid = encoder.image_size // encoder.patch_size
    resized = set()
    for name, table in found.items():
        if name not in target or not name.endswith("relative_position_bias_table") or not _misfit(found, target, name):
            continue
        side = (math.isqrt(table.shape[0] - CLASS_DISTANCES) + 1) // 2
        if (2 * side - 1) ** 2 + CLASS_DISTANCES == table.shape[0]:
            found[name] = resized_table(table, (side, side), (grid, grid))
            resized.add(side)
    adapted.extend(f"relative positions interpolated from {s}x{s} to {grid}x{grid}" for s in sorted(resized))


def _fit_first_layer(found: State, target: Mapping[str, Tensor], adapted: list[str]) -> None:
    name = next((k for k, v in target.items() if v.ndim == 4), None)
    if name is None or name not in found:
        return
    weight, wanted = found[name].float(), target[name]
    if weight.ndim == 2:  # a patch embedding kept as a matrix over flattened patches
        side = math.isqrt(weight.shape[1] // wanted.shape[1])
        if side * side * wanted.shape[1] == weight.shape[1]:
            weight = weight.reshape(weight.shape[0], wanted.shape[1], side, side)
    if weight.ndim != 4 or weight.shape == wanted.shape:
        found[name] = weight
        return
    if weight.shape[0] == wanted.shape[0] and weight.shape[1] != wanted.shape[1]:
        # The mean filter in every channel, scaled so that equal channels give the same response as before.
        mean = weight.mean(1, keepdim=True) * (weight.shape[1] / wanted.shape[1])
        adapted.append(f"{name} from {weight.shape[1]} to {wanted.shape[1]} channels (mean filter)")
        weight = mean.expand(-1, wanted.shape[1], -1, -1)
    if name.startswith("patch_embed.") and weight.shape[2:] != wanted.shape[2:]:
        from timm.layers.patch_embed import resample_patch_embed

        adapted.append(f"{name} from patch {weight.shape[-1]} to {wanted.shape[-1]} (pseudo-inverse resize)")
        weight = resample_patch_embed(weight, list(wanted.shape[2:]))
    found[name] = weight


def _fit_positions(
    encoder: TimmViT | PixelTransformer, found: State, target: Mapping[str, Tensor], adapted: list[str]
) -> None:
    table, wanted = found["pos_embed"].float(), target["pos_embed"]
    if table.ndim == 2:
        table = table.unsqueeze(0)
    own_prefix = encoder.position_prefix
    side = math.isqrt(table.shape[1])
    prefix = table.shape[1] - side * side
    if prefix > encoder.prefix_tokens + 1 or table.shape[-1] != wanted.shape[-1]:
        return  # not a square grid, or another width: the shape check below says so
    grid = math.isqrt(wanted.shape[1] - own_prefix)
    if prefix and not own_prefix:
        names = [n for n in ("cls_token", "dist_token", "reg_token") if n in found]
        offset = 0
        for name in names:
            count = found[name].shape[1] if found[name].ndim == 3 else 1
            part = table[:, offset : min(prefix, offset + count)]
            if part.shape[1] == count:
                found[name] = found[name].float() + part
            offset += count
        table, prefix = table[:, prefix:], 0
        adapted.append("positions of prefix tokens are added to the tokens")
    elif own_prefix > prefix:
        zeros = table.new_zeros(1, own_prefix - prefix, table.shape[-1])
        table = torch.cat([table[:, :prefix], zeros, table[:, prefix:]], dim=1)
        prefix = own_prefix
    elif prefix > own_prefix:
        table = torch.cat([table[:, :own_prefix], table[:, prefix:]], dim=1)
        prefix = own_prefix
    if side != grid:
        table = interpolate_positions(table, (grid, grid), style=POSITION_STYLE, prefix=prefix)
        adapted.append(f"positions interpolated from {side}x{side} to {grid}x{grid}")
    found["pos_embed"] = table


def _some(names: tuple[str, ...], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
