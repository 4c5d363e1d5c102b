"""Choosing the tokens that an encoder sees. Nothing here waits for the device.

Shape suffixes: B images, N patches, M kept patches, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from imprint.core.errors import ConfigError


def kept_count(patches: int, ratio: float) -> int:
    """Return how many of N patches stay at a mask ratio: int(N (1 - ratio)), as MAE's code rounds.

    Raises:
        ConfigError: for a ratio outside [0, 1), or one that keeps nothing.
    """
    kept = int(patches * (1 - ratio))
    if not 0 <= ratio < 1 or kept < 1:
        raise ConfigError(f"mask ratio {ratio} keeps none of {patches} patches; use a smaller one, in [0, 1).")
    return kept


def random_masking(noise_BN: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mask the patches with the largest noise (MAE, arXiv 2111.06377, App. A.1 and public code).

    Args:
        noise_BN: one draw per patch; ties go to the earlier patch.
        ratio: share of patches to mask.

    Returns:
        keep_BM: int64 indices of the kept patches, by rising noise.
        mask_BN: bool, True = masked.
        restore_BN: int64; place n of the grid holds row restore[n] of [kept, masked].

    Raises:
        ConfigError: see `kept_count`.
    """
    keep = kept_count(noise_BN.shape[1], ratio)
    order_BN = torch.argsort(noise_BN, dim=1, stable=True)
    restore_BN = _inverse(order_BN)
    return order_BN[:, :keep], restore_BN >= keep, restore_BN


def order_from_mask(mask_BN: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return (keep_BM, restore_BN) for a given mask; kept patches in the order of the grid.

    Args:
        mask_BN: bool, True = masked; every row leaves exactly `keep` patches, which is not checked (it would wait for
            the device).
        keep: M.
    """
    order_BN = torch.argsort(mask_BN.to(torch.uint8), dim=1, stable=True)
    return order_BN[:, :keep], _inverse(order_BN)


def keep_from_mask(mask_BN: Tensor, keep: int) -> Tensor:
    """Return the int64 indices (B, M) of the patches that the mask leaves, in the order of the grid."""
    return order_from_mask(mask_BN, keep)[0]


def by_row(places: Tensor, mask_VBN: Tensor) -> Tensor:
    """Return where each row of a mask is True, int64 (V, B, M), ascending; nothing waits for the device.

    Args:
        places: flat int64 indices of the mask's True entries, ascending (`Batch.places`).
        mask_VBN: the mask, only its shape is read; every row has the same number M of True.

    Raises:
        ConfigError: when the number of places does not divide by the number of rows.
    """
    rows, patches = mask_VBN.shape[:-1].numel(), mask_VBN.shape[-1]
    if rows == 0 or places.numel() % rows:
        raise ConfigError(
            f"{places.numel()} masked places do not make {rows} rows of equal number; use a mask kind with a fixed "
            "number of patches per image."
        )
    return (places % patches).unflatten(0, (*mask_VBN.shape[:-1], -1))


def take_tokens(tokens_BND: Tensor, keep_BM: Tensor) -> Tensor:
    """Return the tokens (B, M, D) at the kept places; differentiable."""
    return torch.gather(tokens_BND, 1, keep_BM[..., None].expand(-1, -1, tokens_BND.shape[-1]))


def token_mask(noise_BL: Tensor, ratio: float, allowed_BL: Tensor | None = None) -> Tensor:
    """Mask the share `ratio` of each text's tokens, at least one: those with the smallest noise (BERT, Sec. 3.1).

    Args:
        noise_BL: one uniform per token.
        ratio: share in (0, 1], of those allowed; rounded.
        allowed_BL: bool, False where nothing may be masked (padding, special tokens); None allows all.

    Returns:
        bool (B, L).

    Raises:
        ConfigError: for a ratio outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ConfigError(f"token_mask: the ratio must lie in (0, 1], got {ratio:g}.")
    allowed_BL = torch.ones_like(noise_BL, dtype=torch.bool) if allowed_BL is None else allowed_BL
    count_B1 = (allowed_BL.sum(1, keepdim=True) * ratio).round().clamp_min(1)
    rank_BL = _inverse(noise_BL.masked_fill(~allowed_BL, torch.inf).argsort(dim=1, stable=True))
    return (rank_BL < count_B1) & allowed_BL


def span_mask(noise_BT: Tensor, start: float, length: int) -> Tensor:
    """Mask spans of frames: a share `start` of all frames begins one, and spans may overlap (wav2vec 2.0, Sec. 3.1).

    Args:
        noise_BT: one uniform per frame; those with the smallest begin a span, among the frames where a whole one fits.
        start: share of frames that begin a span, rounded, at least one (data2vec: 0.065).
        length: frames of a span (10).

    Returns:
        bool (B, T).

    Raises:
        ConfigError: for spans that do not fit, or that leave no frame.
    """
    frames = noise_BT.shape[1]
    count = max(1, round(start * frames))
    if not 0 < start < 1 or not 1 <= length < frames or count > frames - length + 1:
        raise ConfigError(f"span_mask: {count} spans of {length} frames do not fit {frames} frames.")
    first_BK = noise_BT[:, : frames - length + 1].argsort(dim=1, stable=True)[:, :count]
    begins_BT = torch.zeros(noise_BT.shape, device=noise_BT.device).scatter_(1, first_BK, 1.0)
    # A frame is masked when a span began at it or at one of the `length` - 1 frames before.
    return F.max_pool1d(F.pad(begins_BT, (length - 1, 0))[:, None], length, stride=1)[:, 0] > 0


def _inverse(order_BN: Tensor) -> Tensor:
    """Return the inverse permutation of each row; one scatter, where a second argsort would do the work again."""
    places = torch.arange(order_BN.shape[1], device=order_BN.device).expand_as(order_BN)
    return torch.empty_like(order_BN).scatter_(1, order_BN, places)
