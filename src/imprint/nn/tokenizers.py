"""Tokenizers: a grid of discrete codes for an image, which masked methods predict in place of its pixels.

Shape suffixes: B images, C channels, H x W pixels, N = gh * gw tokens (row-major), P values per patch, D width of a
code, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imprint.core.errors import ConfigError
from imprint.ops.patchify import normalise_patches, patchify


class Tokenizer(nn.Module):
    """Base of the tokenizers; none of them lets a gradient through.

    Attributes:
        vocabulary: K, the number of codes.
        stride: pixels per token along a side.
        channels: C of the images it reads.
    """

    vocabulary: int
    stride: int
    channels: int

    def grid_for(self, side: int) -> tuple[int, int]:
        """Return the grid of tokens of a square image with `side` pixels.

        Raises:
            ConfigError: when the stride does not divide it.
        """
        if side < self.stride or side % self.stride:
            raise ConfigError(
                f"the tokenizer reads one token per {self.stride} x {self.stride} pixels and an image of {side} pixels "
                f"does not divide; use a multiple of {self.stride}."
            )
        return side // self.stride, side // self.stride

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Return the codes (B, N), int64 in [0, K), row-major.

        Args:
            images_BCHW: normalised floats, sides multiples of the stride.
        """
        raise TypeError(f"{type(self).__name__} does not say how to encode")

    @torch.no_grad()
    def encode_grid(self, images_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return as many codes per image as `grid` has places, whatever the image's size; (B, gh * gw) int64.

        The image is resized (bicubic, antialiased) to `grid` times the stride: BEiT (arXiv 2106.08254, App. D, public
        code) reads the 14 x 14 tokens of a 224-pixel crop from the same crop at 112 pixels. The public code resizes the
        original crop with a Lanczos filter, here the crop that the encoder sees is resized on the device.
        """
        size = (grid[0] * self.stride, grid[1] * self.stride)
        if tuple(images_BCHW.shape[-2:]) != size:
            images_BCHW = F.interpolate(images_BCHW.float(), size=size, mode="bicubic", antialias=True)
        return self.encode(images_BCHW)

    def decode(self, tokens_BN: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """Return the images that the codes stand for, normalised floats; None when the tokenizer cannot tell."""
        return None


class RandomProjectionTokenizer(Tokenizer):
    r"""Nearest of K random codes to a randomly projected patch: argmax_k <A x / |A x|, c_k / |c_k|>; no training.

    A is Xavier-uniform and the c_k are Gaussian, both frozen (BEST-RQ, arXiv 2202.01855, Sec. 3.1). Without a `width`
    the code vectors lie in the space of the patches (SplitMask, arXiv 2112.10740, Sec. 3: a patch takes the entry of
    the vocabulary of highest cosine similarity, and random vocabularies do as well as a discrete VAE). Patches are
    normalised first (mean 0, variance 1): otherwise brightness alone would choose between few codes.

    The buffers are drawn from torch's generator, which the trainer seeds alike in every process, and belong to the
    checkpoint.

    Args:
        patch_size: side of a patch in pixels, the stride.
        channels: C.
        vocabulary: K.
        width: D of the projection, or None for codes in the space of the patches.

    Raises:
        ConfigError: for sizes below one, or fewer than two codes.
    """

    projection_PD: Tensor | None
    codes_DK: Tensor

    def __init__(self, patch_size: int, channels: int = 3, vocabulary: int = 8192, width: int | None = 16) -> None:
        super().__init__()
        if patch_size < 1 or channels < 1 or vocabulary < 2 or (width is not None and width < 1):
            raise ConfigError(
                f"a random projection needs patches and widths of at least 1 and 2 codes, got patch_size={patch_size}, "
                f"channels={channels}, vocabulary={vocabulary}, width={width}."
            )
        self.stride, self.channels, self.vocabulary = patch_size, channels, vocabulary
        values = patch_size**2 * channels
        projection = None if width is None else nn.init.xavier_uniform_(torch.empty(values, width))
        codes_DK = F.normalize(torch.randn(width or values, vocabulary), dim=0)
        self.register_buffer("projection_PD", projection)
        self.register_buffer("codes_DK", codes_DK)

    @torch.no_grad()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Return the codes (B, N); computed in float32, so that mixed precision does not change a target."""
        with torch.autocast(images_BCHW.device.type, enabled=False):
            x = normalise_patches(patchify(images_BCHW.float(), self.stride))
            if self.projection_PD is not None:
                x = x @ self.projection_PD.float()
            # The length of A x scales all similarities of a patch alike and leaves their order as it is.
            return nearest(x.flatten(0, 1), self.codes_DK.float()).view(x.shape[:2])


def nearest(x_RD: Tensor, codes_DK: Tensor) -> Tensor:
    """Return argmax_k <x_r, c_k> of every row, int64 (R,), without keeping all similarities at once."""
    rows = max(1, (2**20 if x_RD.device.type == "cpu" else 2**27) // codes_DK.shape[1])
    return torch.cat([(part @ codes_DK).argmax(1) for part in x_RD.split(rows)])
