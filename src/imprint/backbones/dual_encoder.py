"""Images and texts in one space: the contract that zero-shot classification and retrieval build on.

Shapes: B images or texts, D width of the image tower, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imprint.backbones.encoder import Encoder, Features
from imprint.backbones.text_encoder import TextEncoder, require_texts
from imprint.backbones.text_tokenizer import TextTokenizer
from imprint.core.errors import ConfigError

MAX_LOG_SCALE = 100.0


class DualEncoder(Encoder):
    """An image tower and a text tower with vectors in one space (CLIP, arXiv 2103.00020; SigLIP, arXiv 2303.15343).

    It is an `Encoder`: its image side is the image tower's, so every protocol and picture works on it. Similarity of
    an image x and a text y is scale * <project(x), encode_text(y)> + bias.

    Args:
        vision: the image tower.
        text: the text tower, with its tokenizer.
        projection: from the pooled vector (B, D) of the image tower to (B, E); `nn.Identity` where the tower pools
            into the shared space itself.
        log_scale: parameter, logarithm of the scale, 0-d or of one element.
        bias: parameter, added to every similarity (SigLIP), or None.
        config: JSON-ready description; None describes the image tower.

    Attributes:
        vision: see above.
        text: see above.
        joint_dim: E.

    Raises:
        ConfigError: when the two sides give vectors of different widths.
    """

    def __init__(
        self,
        vision: Encoder,
        text: TextEncoder,
        projection: nn.Module,
        log_scale: nn.Parameter,
        bias: nn.Parameter | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.vision, self.text, self.projection = vision, text, projection
        self.log_scale = log_scale
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        self.joint_dim = text.joint_dim
        width = int(getattr(projection, "out_features", vision.embed_dim))
        if width != self.joint_dim:
            raise ConfigError(
                f"images are projected to {width} dimensions and texts to {self.joint_dim}; both must be the same."
            )
        self.name, self.embed_dim, self.patch_size = vision.name, vision.embed_dim, vision.patch_size
        self.depth, self.channels, self.image_size = vision.depth, vision.channels, vision.image_size
        self.prefix_tokens, self.has_tokens = vision.prefix_tokens, vision.has_tokens
        self.can_mask, self.can_drop = vision.can_mask, vision.can_drop
        self._config = None if config is None else dict(config)

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The run's tokenizer of a text tower that was trained here; None for one that brings its own."""
        return self.text.learned

    @tokenizer.setter
    def tokenizer(self, value: TextTokenizer | None) -> None:
        if value is not None:
            self.text.tokenized_by(value)

    @property
    def logit_scale(self) -> Tensor:
        """The factor of every similarity, exp of what is learned, at most 100 (CLIP, Sec. 2.5); 0-d."""
        return self.log_scale.reshape(()).exp().clamp(max=MAX_LOG_SCALE)

    @property
    def logit_bias(self) -> Tensor:
        """The summand of every similarity, 0 without one; 0-d."""
        return self.log_scale.new_zeros(()) if self.bias is None else self.bias.reshape(())

    def project(self, pooled_BD: Tensor) -> Tensor:
        """Return image vectors (B, E) of length 1 from pooled vectors of the image tower."""
        return F.normalize(self.projection(pooled_BD).float(), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return text vectors (B, E) of length 1; texts beyond the tokenizer's context lose their end.

        Raises:
            DataError: for an empty text.
        """
        require_texts(texts)
        if not texts:
            return torch.zeros(0, self.joint_dim, device=self.log_scale.device)
        return F.normalize(self.text(self.text.tokenizer(texts).to(self.log_scale.device)).float(), dim=-1)

    def encode(self, images_BCHW: Tensor, mask_BN: Tensor | None = None, keep_BM: Tensor | None = None) -> Features:
        """Encode images by the image tower."""
        return self.vision.encode(images_BCHW, mask_BN, keep_BM)

    def encode_many(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Features]:
        """Encode batches of different sizes by the image tower."""
        return self.vision.encode_many(images, masks)

    def encode_layers(
        self, images_BCHW: Tensor, layers: Sequence[int], *, mask_BN: Tensor | None = None, norm: bool = True
    ) -> list[Features]:
        """Return the image tower's Features after the given blocks or stages."""
        return self.vision.encode_layers(images_BCHW, layers, mask_BN=mask_BN, norm=norm)

    def encode_maps(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return the image tower's feature maps."""
        return self.vision.encode_maps(images_BCHW)

    @property
    def map_shapes(self) -> tuple[tuple[int, int], ...]:
        """Width and stride of the image tower's maps."""
        return self.vision.map_shapes

    def attention(self, images_BCHW: Tensor, layer: int = -1) -> Tensor:
        """Return attention probabilities of one block of the image tower."""
        return self.vision.attention(images_BCHW, layer)

    def enable_mask_token(self, std: float = 0.02) -> None:
        """Create the image tower's mask token."""
        self.vision.enable_mask_token(std)

    def freeze_patch_projection(self) -> None:
        """Keep the image tower's patch projection as it is."""
        self.vision.freeze_patch_projection()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in both towers."""
        self.vision.set_grad_checkpointing(enable)
        self.text.recompute = enable

    @property
    def config(self) -> dict[str, Any]:
        """What it was built from."""
        return self.vision.config if self._config is None else dict(self._config)


def require_dual(encoder: Encoder, protocol: str) -> DualEncoder:
    """Return the encoder as one of images and texts.

    Raises:
        ConfigError: for an encoder of images alone, or of texts alone.
    """
    if not isinstance(encoder, DualEncoder):
        what = "texts" if encoder.name.startswith("text:") else "images"
        raise ConfigError(
            f"'{protocol}' compares images with texts, and '{encoder.name}' encodes {what} only. Give a model with a "
            "text tower: --encoder RUN of clip or siglip, or hf:FOLDER, where FOLDER holds a CLIP or SigLIP model of "
            "transformers with its tokenizer."
        )
    return encoder
