"""The discrete VAE of DALL-E around any encoder that gives a map: a tokenizer that is learned.

Shape suffixes: B images, C channels, H x W pixels, N = gh * gw tokens (row-major), K codes, E width of a code's
embedding in the decoder.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.backbones.dvae_encoder import start_convolutions
from imprint.backbones.encoder import Encoder
from imprint.core.errors import ConfigError
from imprint.nn.tokenizers import Tokenizer

Likelihood = Literal["laplace", "l2", "l1"]

DARKEST, BRIGHTEST = -2.2, 2.7
"""Range of normalised pixels until images were seen: a little more than black and white at ImageNet's mean and std."""


class DecoderBlock(nn.Module):
    """x + g f(x), f four ReLU-convolutions of a quarter of the width (1x1, 3x3, 3x3, 3x3), g = 1 / blocks^2."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        hidden = max(1, outputs // 4)
        self.gain = 1.0 / blocks**2
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(inputs, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.skip(x) + self.gain * self.body(x)
        return out


class ConvDecoder(nn.Module):
    """(B, E, gh, gw) -> (B, outputs, H, W): groups of blocks with nearest-neighbour upsampling between them.

    The mirror of DALL-E's encoder (arXiv 2102.12092, App. A.1): one group more than there are doublings, the widest
    first, a 1x1 convolution at the end.

    Args:
        embedding: E.
        outputs: channels of the result.
        stride: by how much the sides grow, a power of two.
        width: of the last group; each group before it is twice as wide.
        blocks: per group.

    Raises:
        ConfigError: for a stride that is no power of two.
    """

    def __init__(self, embedding: int, outputs: int, stride: int, width: int, blocks: int) -> None:
        super().__init__()
        doublings = stride.bit_length() - 1
        if stride < 1 or stride != 2**doublings:
            raise ConfigError(
                f"the decoder doubles its maps and cannot reach a stride of {stride}; choose an encoder whose stride "
                "is a power of two (dvae_encoder: 8; or a ViT with patches of 4, 8 or 16 pixels)."
            )
        total = (doublings + 1) * blocks
        parts: list[nn.Module] = []
        for group in range(doublings, -1, -1):
            for _ in range(blocks):
                parts.append(DecoderBlock(embedding, width * 2**group, total))
                embedding = width * 2**group
            if group:
                parts.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.layers = nn.Sequential(*parts, nn.ReLU(), nn.Conv2d(embedding, outputs, 1))
        start_convolutions(self)

    def forward(self, x_BEhw: Tensor) -> Tensor:
        """Return the decoded map."""
        out: Tensor = self.layers(x_BEhw)
        return out


class DiscreteVAE(Tokenizer):
    """Encoder, logits over K codes at every place of its grid, codebook, decoder (arXiv 2102.12092, Sec. 2.1, App. A).

    Args:
        encoder: gives the map; its stride is the tokenizer's.
        vocabulary: K.
        embedding: E, width of the codebook (DALL-E: 128).
        width: width of the decoder at full resolution (DALL-E: 256).
        blocks: blocks per group of the decoder (DALL-E: 2).
        likelihood: what the decoder puts out: location and log scale of a logit-Laplace (`laplace`), or the image.
        margin: epsilon of the logit-Laplace, see `losses.dvae.logit_laplace`.
        start: deviation of the codebook's first values; None takes K^-1/2, a convolution's of K inputs.

    Raises:
        ConfigError: for a stride that the decoder cannot undo.
    """

    low_C: Tensor
    high_C: Tensor

    def __init__(
        self,
        encoder: Encoder,
        vocabulary: int = 8192,
        *,
        embedding: int = 128,
        width: int = 256,
        blocks: int = 2,
        likelihood: Likelihood = "laplace",
        margin: float = 0.1,
        start: float | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.channels, self.vocabulary = encoder.patch_size, encoder.channels, vocabulary
        self.likelihood, self.margin = likelihood, margin
        self.backbone = encoder
        features = int(getattr(encoder, "patch_dim", encoder.embed_dim))
        self.logits = nn.Linear(features, vocabulary)
        nn.init.normal_(self.logits.weight, std=features**-0.5)
        nn.init.zeros_(self.logits.bias)
        # A 1x1 convolution of K inputs in DALL-E; as a matrix it serves one-hot codes as a table, too.
        self.codebook_KE = nn.Parameter(torch.randn(vocabulary, embedding) * (start or vocabulary**-0.5))
        outputs = encoder.channels * (2 if likelihood == "laplace" else 1)
        self.decoder = ConvDecoder(embedding, outputs, self.stride, width, blocks)
        self.register_buffer("low_C", torch.full((encoder.channels,), DARKEST))
        self.register_buffer("high_C", torch.full((encoder.channels,), BRIGHTEST))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return logits (B, N, K) and the grid."""
        features = self.backbone(images_BCHW)
        logits_BNK: Tensor = self.logits(features.patches_BND)
        return logits_BNK, features.grid

    def decode_soft(self, weights_BNK: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the decoder's output for weights over the codes (relaxed or one-hot)."""
        return self._decoded(weights_BNK @ self.codebook_KE.to(weights_BNK.dtype), grid)

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Return the most probable codes (B, N)."""
        self.grid_for(images_BCHW.shape[-2]), self.grid_for(images_BCHW.shape[-1])
        return self(images_BCHW)[0].argmax(-1)

    @torch.no_grad()
    def decode(self, tokens_BN: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the images that hard codes stand for, normalised floats."""
        return self.image(self._decoded(F.embedding(tokens_BN, self.codebook_KE), grid))

    def image(self, decoded: Tensor) -> Tensor:
        """Return the image, normalised floats, in a decoder's output: the location of the likelihood."""
        if self.likelihood != "laplace":
            return decoded
        unit = torch.sigmoid(decoded[:, : self.channels].float())
        return self.from_unit(((unit - self.margin) / (1 - 2 * self.margin)).clamp(0, 1))

    def to_unit(self, images_BCHW: Tensor) -> Tensor:
        """Return pixels in [0, 1] of normalised ones, by the range seen in the training images."""
        low, high = self.low_C[:, None, None], self.high_C[:, None, None]
        return ((images_BCHW.float() - low) / (high - low)).clamp(0, 1)

    def from_unit(self, unit_BCHW: Tensor) -> Tensor:
        """Undo `to_unit`."""
        low, high = self.low_C[:, None, None], self.high_C[:, None, None]
        return unit_BCHW * (high - low) + low

    def see_range(self, images_BCHW: Tensor) -> None:
        """Take each channel's darkest and brightest value from the training images."""
        values_CV = images_BCHW.float().transpose(0, 1).flatten(1)
        low, high = values_CV.amin(1), values_CV.amax(1)
        wide = high - low > 1e-3  # a channel without content keeps the usual range
        self.low_C.copy_(torch.where(wide, low, self.low_C))
        self.high_C.copy_(torch.where(wide, high, self.high_C))

    def _decoded(self, codes_BNE: Tensor, grid: tuple[int, int]) -> Tensor:
        out: Tensor = self.decoder(codes_BNE.transpose(1, 2).unflatten(2, grid))
        return out


def gumbel_softmax(logits_BNK: Tensor, temperature: float, noise: float = 1.0) -> Tensor:
    r"""Return the relaxation softmax((l + G) / tau) of samples from the codes (Jang et al., arXiv 1611.01144, Eq. 2).

    Args:
        logits_BNK: l; float16 and bfloat16 are computed in float32.
        temperature: tau > 0; towards 0 the weights become one-hot.
        noise: factor on the Gumbel noise G; 0 gives the plain softmax.

    Raises:
        ConfigError: for a temperature that is not positive.
    """
    if not temperature > 0 or math.isinf(temperature):
        raise ConfigError(f"gumbel_softmax: temperature {temperature} must be positive.")
    logits = logits_BNK if logits_BNK.dtype == torch.float64 else logits_BNK.float()
    if noise:
        logits = logits + noise * torch.empty_like(logits).exponential_().clamp_min_(1e-30).log_().neg_()
    return torch.softmax(logits / temperature, -1)
