"""Random initialisations of ViTs that papers name: BEiT's, MAE's and MoCo v3's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from imprint.backbones.pixel_transformer import Backbone, PixelTransformer
from imprint.core.errors import ConfigError, unknown


def init_beit(encoder: Backbone) -> None:
    """Initialise a ViT as BEiT does (arXiv 2106.08254, Sec. 2.5; microsoft/unilm, modeling_pretrain.py).

    All from N(0, 0.02) cut at one deviation; the last matrices of block l, from 1, are divided by sqrt(2 l).
    """
    blocks: Any = getattr(encoder.model, "blocks", None)
    if not encoder.can_mask or blocks is None or isinstance(encoder, PixelTransformer):
        raise ConfigError(f"encoder '{encoder.name}': init='beit' is for ViTs; leave init at timm.")

    def draw(weight: torch.Tensor) -> None:
        nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)

    for name, parameter in encoder.model.named_parameters():
        if parameter.ndim >= 2 and name.endswith((".weight", "cls_token", "pos_embed")) and parameter.requires_grad:
            draw(parameter)
        elif name.endswith("bias") and parameter.ndim == 1:
            nn.init.zeros_(parameter)
    with torch.no_grad():
        for layer, block in enumerate(blocks, 1):
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.div_((2.0 * layer) ** 0.5)


def init_xavier(encoder: Backbone, style: str) -> None:
    """Initialise a ViT as MAE does (arXiv 2111.06377, App. A.1: xavier_uniform, "following ViT's official code").

    MoCo v3 (arXiv 2104.02057, public code) bounds queries, keys and values as the three matrices they are, and starts
    the class token at a standard deviation of 1e-6.
    """
    if style not in ("mae", "mocov3"):
        raise unknown("init", style, ("timm", "mae", "mocov3", "beit"))
    if not encoder.has_tokens or isinstance(encoder, PixelTransformer):
        raise ConfigError(f"encoder '{encoder.name}': init='{style}' is for ViTs; leave init at timm.")
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and "patch_embed" in name):
            weight = module.weight.view(module.weight.shape[0], -1)
            for part in weight.chunk(3) if style == "mocov3" and name.endswith("qkv") else (weight,):
                nn.init.xavier_uniform_(part)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        cls_token = getattr(module, "cls_token", None)
        if isinstance(cls_token, nn.Parameter):
            nn.init.normal_(cls_token, std=0.02 if style == "mae" else 1e-6)
