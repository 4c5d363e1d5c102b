"""Learning rates that fall from a ViT's last block to its first."""

from __future__ import annotations

import re

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
