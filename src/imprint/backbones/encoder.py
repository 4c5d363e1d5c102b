"""The encoder contract: all that methods, evaluations and pictures know of a backbone.

Shapes: B images, C channels, H x W pixels, N = gh * gw patches, D width, R registers, M kept patches, T all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from imprint.core.errors import ConfigError


@dataclass(frozen=True)
class Features:
    """What an encoder says about a batch.

    Attributes:
        pooled_BD: one vector per image, as the backbone's own classifier would see it (before its last layer).
        cls_BD: the class token after the final norm, or None (CNNs, ViTs without one).
        registers_BRD: register tokens after the final norm, or None.
        patches_BND: patch tokens after the final norm, or the feature map of a CNN flattened row-major; with `keep`
            only the kept ones, in the order of `keep`.
        grid: (gh, gw) of the full patch grid.
    """

    pooled_BD: Tensor
    cls_BD: Tensor | None
    registers_BRD: Tensor | None
    patches_BND: Tensor
    grid: tuple[int, int]


class Encoder(nn.Module):
    """A backbone under the contract. Subclasses: `TimmEncoder`.

    Attributes:
        name: what `build_encoder` would be given to make it again.
        embed_dim: D.
        patch_size: side of a patch, or the total stride of a CNN.
        depth: number of blocks (ViT) or stages (CNN).
        channels: C.
        image_size: side it was built for; others are accepted (positions are interpolated).
        prefix_tokens: class token plus registers.
        has_tokens: True when `mask`, `keep` and `attention` work (ViTs).
    """

    name: str
    embed_dim: int
    patch_size: int
    depth: int
    channels: int
    image_size: int
    prefix_tokens: int = 0
    has_tokens: bool = False

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Encode images.

        Args:
            images_BCHW: normalised floats.
            mask_BN: bool, True = patch replaced by the learned mask token (after patch embedding, before positions).
            keep_BM: int64 indices of the patches that enter the blocks; all others are dropped.

        Raises:
            ConfigError: for masks or kept tokens on an encoder without tokens, or sizes that the patch does not divide.
        """
        raise ConfigError(f"encoder '{type(self).__name__}' does not say how to encode.")

    def forward(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Same as `encode` (so that DDP, compile and hooks see the call)."""
        return self.encode(images_BCHW, mask_BN, keep_BM)

    def encode_layers(self, images_BCHW: Tensor, layers: Sequence[int]) -> list[Features]:
        """Return Features after the given blocks (ViT, final norm applied) or stages (CNN); negatives count back."""
        raise ConfigError(f"encoder '{self.name}' does not give single layers.")

    def attention(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """Return attention probabilities (B, heads, T, T) of one block, prefix tokens first.

        Raises:
            ConfigError: for encoders without attention.
        """
        raise ConfigError(f"encoder '{self.name}' has no attention; choose a ViT for attention maps.")

    def freeze_patch_projection(self) -> None:
        """Keep a ViT's random patch projection as it is: its parameters take no gradient.

        Raises:
            ConfigError: for encoders without one.
        """
        raise ConfigError(f"encoder '{self.name}' has no patch projection to freeze; choose a ViT.")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: recompute blocks in the backward pass instead of keeping their activations.

        Raises:
            ConfigError: for an encoder that cannot.
        """
        raise ConfigError(f"encoder '{self.name}' cannot recompute its activations; switch it off.")

    @property
    def config(self) -> dict[str, Any]:
        """JSON-ready arguments from which `build_encoder(**config)` makes an encoder of the same shape."""
        raise ConfigError(f"encoder '{self.name}' has no stored configuration.")


def require_tokens(encoder: Encoder, method: str, alternatives: Sequence[str]) -> None:
    """Refuse an encoder without tokens for a method that needs them.

    Raises:
        ConfigError: naming the methods that suit the encoder.
    """
    if not encoder.has_tokens:
        raise ConfigError(
            f"{method} works on patch tokens and '{encoder.name}' has none. "
            "Choose a ViT (for example --encoder vit_small_patch16_224), or a method for CNNs: "
            f"{', '.join(alternatives)}."
        )
