"""Random numbers on the device that are a function of a sample and a key, not of what was drawn before.

Shape suffixes: B samples, N numbers for each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(word: int) -> int:
    word &= 0xFFFFFFFFFFFFFFFF
    return word - (1 << 64) if word >> 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MUL1 = _signed(0xBF58476D1CE4E5B9)
_MUL2 = _signed(0x94D049BB133111EB)


def keyed_uniforms(key: int, index_B: Tensor, count: int) -> Tensor:
    """Return `count` uniforms in [0, 1) for every sample, the same wherever in a batch or on which process it is.

    The SplitMix64 finaliser (Steele, Lea, Flood 2014) of counters from a state mixed of key and sample, in 64-bit
    integers that wrap around: nothing waits for the device, and every device gives the same.

    Args:
        key: one for each purpose and step (`imprint.core.rng.seed_of`).
        index_B: int64, the samples' positions in the source.
        count: N.

    Returns:
        float32 (B, N), 24 random bits each.
    """
    state_B = _mixed(_mixed(index_B + _GOLDEN) + _signed(key))
    counters_N = torch.arange(1, count + 1, device=index_B.device) * _GOLDEN
    bits_BN = _mixed(state_B[:, None] + counters_N)
    return _shifted(bits_BN, 40).float() * 2.0**-24


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MUL1
    x = (x ^ _shifted(x, 27)) * _MUL2
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros: torch's own shift repeats the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
