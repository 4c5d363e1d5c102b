"""Choosing the tokens that an encoder sees. Nothing here waits for the device.

Shape suffixes: B images, N patches, M kept patches, D width.
"""

from __future__ import annotations

import torch
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


def take_tokens(tokens_BND: Tensor, keep_BM: Tensor) -> Tensor:
    """Return the tokens (B, M, D) at the kept places; differentiable."""
    return torch.gather(tokens_BND, 1, keep_BM[..., None].expand(-1, -1, tokens_BND.shape[-1]))


def _inverse(order_BN: Tensor) -> Tensor:
    """Return the inverse permutation of each row; one scatter, where a second argsort would do the work again."""
    places = torch.arange(order_BN.shape[1], device=order_BN.device).expand_as(order_BN)
    return torch.empty_like(order_BN).scatter_(1, order_BN, places)
