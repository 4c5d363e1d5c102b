"""The baseline every encoder must beat: the pixels themselves, under the encoder contract."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from imprint.backbones.encoder import Encoder, Features
from imprint.core.errors import ConfigError


class PixelEncoder(Encoder):
    """Normalised pixels, averaged down to at most `side` x `side`, as one vector of channels * side^2.

    It has no parameters; patches are the pixels (N = side^2, D = channels each) and `pooled` is all of them.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, side: int = 32) -> None:
        super().__init__()
        self.name = "pixels"
        self.side = min(side, image_size)
        self.embed_dim = channels * self.side**2
        self.patch_size = max(1, image_size // self.side)
        self.depth = 0
        self.channels = channels
        self.image_size = image_size

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Return the pixels; masks and kept patches do not apply to them and are refused."""
        if mask_BN is not None or keep_BM is not None:
            raise ConfigError("raw pixels have no tokens to mask or keep; choose a ViT.")
        if images_BCHW.shape[-1] != self.side or images_BCHW.shape[-2] != self.side:
            images_BCHW = F.interpolate(images_BCHW, (self.side, self.side), mode="bilinear", antialias=True)
        patches = images_BCHW.flatten(2).transpose(1, 2)
        return Features(images_BCHW.flatten(1), None, None, patches, (self.side, self.side))

    def encode_maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the pixels themselves as one map, of any sides and at full resolution."""
        return [images_BCHW]

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"name": "pixels", "image_size": self.image_size, "channels": self.channels, "side": self.side}
