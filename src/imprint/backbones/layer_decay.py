"""Learning rates that fall from a ViT's last block to its first."""

from __future__ import annotations

import re

from torch import nn

from imprint.backbones.encoder import Encoder

_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_STEM = re.compile(r"(?:^|\.)(patch_embed|pos_embed|cls_token|reg_token|mask_token)(?:\.|$)")


def layer_scales(method: nn.Module, decay: float) -> dict[int, float]:
    """Return the factor on the rate of every ViT parameter, by the parameter's id.

    decay^(depth + 1 - layer), with layer 0 for patch embedding, tokens and positions, i + 1 for block i, depth + 1 for
    the final norm (BEiT, arXiv 2106.08254, public code). Parameters outside encoders with blocks keep 1.
    """
    scales: dict[int, float] = {}
    for encoder in method.modules():
        if not isinstance(encoder, Encoder) or not encoder.has_tokens:
            continue
        for name, parameter in encoder.named_parameters():
            block = _BLOCK.search(name)
            layer = int(block[1]) + 1 if block else 0 if _STEM.search(name) else encoder.depth + 1
            scales[id(parameter)] = decay ** (encoder.depth + 1 - layer)
    return scales
