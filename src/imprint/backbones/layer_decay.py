"""Learning rates that fall from a ViT's last block to its first, and what decays."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from imprint.backbones.dual_encoder import DualEncoder
from imprint.backbones.encoder import Encoder

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|encoder\.layers)\.(\d+)\.")  # timm's and ours, transformers'
_STEM = re.compile(r"(?:^|\.)(patch_embed|pos_embed|cls_token|reg_token|mask_token|embeddings|pre_layrnorm)(?:\.|$)")


def layer_scales(method: nn.Module, decay: float) -> dict[int, float]:
    """Return the factor on the rate of every ViT parameter, by the parameter's id.

    decay^(depth + 1 - layer), with layer 0 for patch embedding, tokens and positions, i + 1 for block i, depth + 1 for
    the final norm (BEiT, arXiv 2106.08254, public code). Parameters outside encoders with blocks keep 1.
    """
    scales: dict[int, float] = {}
    for encoder in method.modules():
        if not isinstance(encoder, Encoder) or not encoder.has_tokens or isinstance(encoder, DualEncoder):
            continue  # a dual encoder's image tower comes by itself; its text tower is none
        for name, parameter in encoder.named_parameters():
            block = _BLOCK.search(name)
            layer = int(block[1]) + 1 if block else 0 if _STEM.search(name) else encoder.depth + 1
            scales[id(parameter)] = decay ** (encoder.depth + 1 - layer)
    return scales


def parameter_groups(
    model: nn.Module, weight_decay: float, rate_of: Callable[[nn.Parameter], float]
) -> list[dict[str, Any]]:
    """Return an optimizer's groups of the parameters that take gradients, one for every pair of rate and decay.

    Biases, norms, tokens and positions do not decay (BEiT, MAE).

    Args:
        model: what is trained.
        weight_decay: of everything else.
        rate_of: the `lr_scale` of a parameter.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(("_token", "pos_embed"))
            groups.setdefault((rate_of(parameter), decays), []).append(parameter)
    return [
        {"params": params, "lr_scale": rate, "weight_decay": weight_decay * decays}
        for (rate, decays), params in groups.items()
    ]
