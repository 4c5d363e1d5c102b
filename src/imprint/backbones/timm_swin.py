"""timm's Swin Transformers under the contract: masks, stages, any image size; hierarchical features, no class token.

Shapes: B images, H x W pixels, D width of the last stage, E width of the patch embedding, s total stride, p patch side,
N = (H / s) (W / s) places of the last stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Features
from imprint.backbones.timm_encoder import TimmEncoder
from imprint.core.errors import ConfigError


class TimmSwin(TimmEncoder):
    """A timm Swin (v1 or v2) whose embedded patches can be replaced by a learned token.

    `mask_BN` is given at the last stage's grid; every place covers (s / p)^2 embedded patches, which share its fate
    (SimMIM, arXiv 2111.09886, Sec. 3.2: units of 32 px).

    Args:
        model: SwinTransformer or SwinTransformerV2, built with `num_classes=0` and `strict_img_size=False`.
        config: JSON-ready arguments of `build_encoder`.
    """

    can_mask = True

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__(model, config)
        described: Any = model
        self.embed_patch = int(max(described.patch_embed.patch_size))
        self.mask_token: nn.Parameter | None
        self.register_parameter("mask_token", None)
        if config.get("mask_token"):
            self.enable_mask_token()

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Encode images; see the contract and the class."""
        if keep_BM is not None:
            raise ConfigError(f"'{self.name}' attends within windows of the full grid, so no patches can be left out.")
        model: Any = self.model
        x_BHWD = model.norm(model.layers(self._embed(images_BCHW, mask_BN)))
        return self._features(x_BHWD, model.forward_head(x_BHWD, pre_logits=True), images_BCHW, "NHWC")

    def encode_layers(
        self, images_BCHW: Tensor, layers: Sequence[int], *, mask_BN: Tensor | None = None, norm: bool = True
    ) -> list[Features]:
        """Return Features after the given stages, each pooled by its mean; `norm` is for the last stage alone."""
        wanted = [self.layer_index(layer) for layer in layers]
        model: Any = self.model
        x_BHWD = self._embed(images_BCHW, mask_BN)
        found: dict[int, Features] = {}
        for index, stage in enumerate(list(model.layers)[: max(wanted, default=-1) + 1]):
            x_BHWD = stage(x_BHWD)
            if index in wanted:
                out = model.norm(x_BHWD) if norm and index == self.depth - 1 else x_BHWD
                found[index] = self._features(out, None, images_BCHW, "NHWC")
        return [found[index] for index in wanted]

    def enable_mask_token(self, std: float = 0.02) -> None:
        """Create the learned mask token, drawn from N(0, std); once. Call before DDP, the optimizer and EMA copies."""
        if self.mask_token is None:
            described: Any = self.model
            reference = described.patch_embed.proj.weight
            token = torch.empty(1, 1, reference.shape[0], device=reference.device, dtype=reference.dtype)
            self.mask_token = nn.Parameter(token.normal_(std=std))
            self._config["mask_token"] = True

    def drop_mask_token(self) -> None:
        """Remove the learned mask token, which only pretraining needs."""
        self.mask_token = None
        self._config["mask_token"] = False

    def _embed(self, images_BCHW: Tensor, mask_BN: Tensor | None) -> Tensor:
        self.check_images(images_BCHW)
        model: Any = self.model
        x_BHWE: Tensor = model.patch_embed(images_BCHW)
        if mask_BN is None:
            return x_BHWE
        if self.mask_token is None:
            raise ConfigError(
                f"'{self.name}' has no mask token; build it with mask_token=True or call enable_mask_token()."
            )
        height, width = images_BCHW.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ConfigError(
                f"'{self.name}' has a total stride of {self.patch_size} px; {height} x {width} images do not divide, "
                f"so a mask does not fit. Use sides that are multiples of {self.patch_size}."
            )
        factor = self.patch_size // self.embed_patch
        mask_BHW = mask_BN.unflatten(1, (height // self.patch_size, width // self.patch_size))
        fine_BHW1 = mask_BHW.repeat_interleave(factor, 1).repeat_interleave(factor, 2).unsqueeze(-1)
        return torch.where(fine_BHW1, self.mask_token.to(x_BHWE.dtype), x_BHWE)
