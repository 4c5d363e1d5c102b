"""Images as sequences of colours from a small palette, and the palette itself by k-means.

Shape suffixes: B images, C channels, H x W pixels, N = H * W, P pixels of any images, K colours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imprint.core.errors import ConfigError

CHUNK = 2**14
"""Pixels compared with all colours at a time: 32 MiB of float32 for 512 colours, whatever the batch."""


def nearest_colour(pixels_PC: Tensor, colours_KC: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return each pixel's nearest colour (its index; of equally near ones the lower) and squared distance.

    argmin_k |c_k|^2 - 2 x . c_k by one matrix product per chunk of pixels; no (P, K, C) difference is made. float32
    (float64 for float64 pixels), also within autocast. Nothing here waits for the device.

    Args:
        pixels_PC: floats, in any units that the colours share.
        colours_KC: floats.

    Returns:
        int64 (P,) and floats (P,), which rounding may leave a little below the true distance, never below 0.

    Raises:
        ConfigError: for pixels and colours of different numbers of channels.
    """
    if pixels_PC.ndim != 2 or colours_KC.ndim != 2 or pixels_PC.shape[1] != colours_KC.shape[1]:
        raise ConfigError(
            f"nearest_colour: pixels {tuple(pixels_PC.shape)} and colours {tuple(colours_KC.shape)} do not fit as "
            "(P, C) and (K, C)."
        )
    dtype = torch.float64 if pixels_PC.dtype == torch.float64 else torch.float32
    nearest, distance = [], []
    with torch.autocast(pixels_PC.device.type, enabled=False):
        colours_KC = colours_KC.to(dtype)
        half_K = -0.5 * colours_KC.square().sum(1)
        # A traced graph (ONNX) has no loop over a number of pixels that it does not know.
        whole = torch.compiler.is_compiling()
        for chunk_PC in (pixels_PC,) if whole else pixels_PC.split(CHUNK):
            chunk_PC = chunk_PC.to(dtype)
            # The largest x . c - |c|^2 / 2 belongs to the nearest colour.
            score_P, index_P = torch.addmm(half_K, chunk_PC, colours_KC.T).max(1)
            nearest.append(index_P)
            distance.append((chunk_PC.square().sum(1) - 2 * score_P).clamp_min(0))
    return torch.cat(nearest), torch.cat(distance)


def to_colours(images_BCHW: Tensor, colours_KC: Tensor) -> Tensor:
    """Return the images as int64 indices of their nearest colours (B, N), pixels in raster order."""
    pixels_PC = images_BCHW.permute(0, 2, 3, 1).reshape(-1, images_BCHW.shape[1])
    return nearest_colour(pixels_PC, colours_KC)[0].view(images_BCHW.shape[0], -1)


def from_colours(index_BN: Tensor, colours_KC: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return images (B, C, H, W) from indices of colours in raster order; `grid` is (H, W)."""
    return colours_KC[index_BN].unflatten(1, grid).permute(0, 3, 1, 2).contiguous()


def kmeans_colours(pixels_PC: Tensor, count: int, *, rounds: int = 30, start_from: int = 2**13) -> Tensor:
    """Return `count` cluster centres (K, C) of pixels: k-means++ start on a sample, then Lloyd's rounds on all.

    A centre without pixels moves to one of the pixels that are farthest from their own centres. Stops early when no
    pixel changes its centre. Draws from torch's global generator; the same state gives the same centres.

    Args:
        pixels_PC: floats; float16 and bfloat16 are computed in float32.
        count: K; more than there are distinct pixels gives some centres twice.
        rounds: most rounds of Lloyd's algorithm.
        start_from: pixels among which the start is chosen.

    Raises:
        ConfigError: for no pixels, values that are not finite, or a count below 1.
    """
    pixels_PC = pixels_PC if pixels_PC.dtype == torch.float64 else pixels_PC.float()
    if pixels_PC.ndim != 2 or not len(pixels_PC) or count < 1:
        raise ConfigError(f"kmeans_colours: {count} clusters of {tuple(pixels_PC.shape)} pixels; both must be there.")
    if not bool(torch.isfinite(pixels_PC).all()):
        raise ConfigError("kmeans_colours: some pixels are not finite; look for damaged images.")
    centres_KC = _spread_start(pixels_PC, count, start_from)
    before_P: Tensor | None = None
    for _ in range(rounds):
        index_P, distance_P = nearest_colour(pixels_PC, centres_KC)
        if before_P is not None and torch.equal(index_P, before_P):
            break
        before_P = index_P
        size_K = torch.bincount(index_P, minlength=count)
        sums_KC = torch.zeros_like(centres_KC).index_add_(0, index_P, pixels_PC)
        centres_KC = sums_KC / size_K.clamp_min(1)[:, None]
        empty = (size_K == 0).nonzero().squeeze(1)
        if len(empty):
            far_E = distance_P.topk(min(len(empty), len(pixels_PC))).indices
            centres_KC[empty] = pixels_PC[far_E[torch.arange(len(empty), device=far_E.device) % len(far_E)]]
    return centres_KC


def _spread_start(pixels_PC: Tensor, count: int, start_from: int) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii 2007): each next centre drawn with probability ~ squared distance."""
    size = min(len(pixels_PC), max(start_from, count))
    sample_SC = pixels_PC[torch.randperm(len(pixels_PC))[:size].to(pixels_PC.device)]
    draws_K = torch.rand(count, dtype=torch.float64)
    chosen = [sample_SC[0]]
    distance_S = (sample_SC - chosen[0]).square().sum(1)
    for draw in draws_K[1:]:
        mass_S = distance_S.double().cumsum(0)
        # Inverse transform; when all pixels are centres already (mass 0), any pixel will do.
        place = int(torch.searchsorted(mass_S, draw.to(mass_S.device) * mass_S[-1], right=True).clamp_max(size - 1))
        chosen.append(sample_SC[place])
        distance_S = torch.minimum(distance_S, (sample_SC - chosen[-1]).square().sum(1))
    return torch.stack(chosen)
