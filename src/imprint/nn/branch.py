"""An encoder with a head, over views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imprint.backbones.encoder import Encoder


class Branch(nn.Module):
    """Encoder, then head: views (V, B, C, H, W) -> (V, B, K).

    Views of one resolution go through the encoder together, so BatchNorm sees all of them, and the head runs once over
    all views of all resolutions, as in the papers' code (DINO's MultiCropWrapper).
    """

    def __init__(self, backbone: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, *views_VBCHW: Tensor) -> Tensor:
        """Return the head's outputs, views in the order given."""
        pooled = self.pooled(views_VBCHW)
        out: Tensor = self.head(pooled)
        return out.unflatten(0, (-1, views_VBCHW[0].shape[1]))

    def pooled(self, views_VBCHW: Sequence[Tensor]) -> Tensor:
        """Return the encoder's vectors of all views, (V B, D)."""
        parts = [self.backbone(views.flatten(0, 1)).pooled_BD for views in views_VBCHW]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
