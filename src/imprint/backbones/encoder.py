"""The encoder contract: all that methods, evaluations and pictures know of a backbone.

Shapes: B images, C channels, H x W pixels, N = gh * gw patches, D width, R registers, M kept patches, T all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from imprint.backbones.text_tokenizer import TextTokenizer
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
        registers: tokens beside the class token that `registers_BRD` holds; DeiT's distillation token is the first.
        has_tokens: patch tokens that can be looked at: `attention` and `encode_layers` of single blocks work (ViTs).
        can_mask: `encode` takes `mask_BN` once `enable_mask_token` was called (ViTs, Swin).
        can_drop: `encode` takes `keep_BM` (ViTs whose positions are added to the tokens or rotate them).
        tokenizer: what makes tokens of text, for encoders that read it; it is stored with them.
    """

    name: str
    embed_dim: int
    patch_size: int
    depth: int
    channels: int
    image_size: int
    prefix_tokens: int = 0
    registers: int = 0
    has_tokens: bool = False
    can_mask: bool = False
    can_drop: bool = False
    tokenizer: TextTokenizer | None = None

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

    def encode_many(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]:
        """Encode several batches of different image sizes in one pass; equal to calling `encode` on each.

        A ViT runs its linear layers once over the tokens of all batches, and attention within each image (the
        block-diagonal attention of DINOv2, arXiv 2304.07193, Sec. 5); other encoders take one batch after the other.

        Args:
            images: normalised floats (B_i, C, H_i, W_i).
            masks: per batch bool (B_i, N_i) or None.
        """
        masks = [None] * len(images) if masks is None else masks
        return [self(x, m) for x, m in zip(images, masks, strict=True)]

    def encode_layers(
        self, images_BCHW: Tensor, layers: Sequence[int], *, mask_BN: Tensor | None = None, norm: bool = True
    ) -> list[Features]:
        """Return Features after the given blocks (ViT) or stages (CNN); negatives count back.

        Args:
            images_BCHW: normalised floats.
            layers: which blocks or stages.
            mask_BN: see `encode`.
            norm: apply the final norm to each; False gives what the blocks put out (data2vec's targets).
        """
        raise ConfigError(f"encoder '{self.name}' does not give single layers.")

    def encode_maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return feature maps (B, D_i, h_i, w_i), finest first: one per stage of a hierarchical encoder, else the
        patches after the final norm as one map.

        Dense tasks (detection, segmentation) build on them; images may have any sides that the encoder accepts.
        """
        features = self(images_BCHW)
        return [features.patches_BND.transpose(1, 2).unflatten(2, features.grid)]

    @property
    def map_shapes(self) -> tuple[tuple[int, int], ...]:
        """Width D_i and stride (pixels per cell) of every map of `encode_maps`."""
        return ((int(getattr(self, "patch_dim", self.embed_dim)), self.patch_size),)

    def attention(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """Return attention probabilities (B, heads, T, T) of one block, prefix tokens first.

        Raises:
            ConfigError: for encoders without attention.
        """
        raise ConfigError(f"encoder '{self.name}' has no attention; choose a ViT for attention maps.")

    def attentions(self, images_BCHW: Tensor) -> Iterator[Tensor]:
        """Yield `attention` of every block from the first to the last, so that only one is in memory at a time.

        Raises:
            ConfigError: for encoders without attention.
        """
        for layer in range(max(1, self.depth)):
            yield self.attention(images_BCHW, layer)

    def enable_mask_token(self, std: float = 0.02) -> None:
        """Create the learned mask token that `mask_BN` needs, drawn from N(0, std); once.

        Raises:
            ConfigError: for encoders without `can_mask`.
        """
        raise ConfigError(f"encoder '{self.name}' has no patches to mask; choose a ViT or a Swin.")

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


def require_tokens(
    encoder: Encoder, method: str, alternatives: Sequence[str], *, mask: bool = False, drop: bool = False
) -> None:
    """Refuse an encoder that cannot do what a method asks of it.

    Args:
        encoder: the encoder.
        method: who asks.
        alternatives: methods that suit encoders without patch tokens.
        mask: patches are replaced by a learned token: ViTs and Swins suit.
        drop: patches are left out: ViTs whose positions belong to the tokens suit.
            With neither, patch tokens are asked for, which ViTs have.

    Raises:
        ConfigError: naming what suits.
    """
    instead = f" or a method for other encoders: {', '.join(alternatives)}" if alternatives else ""
    if mask and not encoder.can_mask:
        raise ConfigError(
            f"{method} hides patches behind a learned token and '{encoder.name}' has no place for one. Choose a ViT or "
            f"a Swin (for example --encoder vit_small_patch16_224 or swin_tiny_patch4_window7_224){instead}."
        )
    if drop and not encoder.can_drop:
        why = "has relative positions for the full grid only" if encoder.has_tokens else "has no tokens to leave out"
        raise ConfigError(
            f"{method} encodes a part of the patches only and '{encoder.name}' {why}. "
            f"Choose a ViT with positions of its tokens (for example --encoder vit_small_patch16_224){instead}."
        )
    if not (mask or drop) and not encoder.has_tokens:
        raise ConfigError(
            f"{method} works on patch tokens and '{encoder.name}' has none. "
            "Choose a ViT (for example --encoder vit_small_patch16_224), or a method for CNNs: "
            f"{', '.join(alternatives)}."
        )
