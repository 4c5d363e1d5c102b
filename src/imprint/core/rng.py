"""Counter-based randomness: every number is a pure function of a key, never of what was drawn before.

Keys are 64-bit words made from (seed, epoch, sample, view, ...) by the SplitMix64 finaliser (Steele, Lea, Flood 2014),
which passes BigCrush; a stream of uniforms is the finaliser applied to key + n * golden ratio. All functions are
vectorised over numpy arrays, so drawing the parameters of a batch costs a handful of array operations.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)


def _mix(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(30))) * _MUL1
    x = (x ^ (x >> np.uint64(27))) * _MUL2
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


def _word(part: int | str | npt.ArrayLike) -> U64:
    if isinstance(part, str):
        return np.asarray(zlib.crc32(part.encode()), dtype=np.uint64)
    if isinstance(part, int):
        return np.asarray(part & 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    return np.asarray(part).astype(np.uint64)


def key(*parts: int | str | npt.ArrayLike) -> U64:
    """Fold words, names and arrays of words into keys; arrays broadcast.

    `key(seed, epoch, index_B, "global", 0)` gives one key per sample.
    """
    with np.errstate(over="ignore"):
        state = np.asarray(0x243F6A8885A308D3, dtype=np.uint64)
        for part in parts:
            state = _mix(state + _GOLDEN + _mix(_word(part) + _GOLDEN))
    return state


def uniforms(keys: npt.ArrayLike, n: int) -> npt.NDArray[np.float64]:
    """Return `n` uniforms in [0, 1) per key, shape keys.shape + (n,), with 53 random bits each."""
    keys = np.asarray(keys, dtype=np.uint64)
    with np.errstate(over="ignore"):
        counters = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
        bits = _mix(keys[..., None] + counters)
    return (bits >> np.uint64(11)).astype(np.float64) * (1.0 / (1 << 53))


def seed_of(*parts: int | str) -> int:
    """Return a non-negative 63-bit seed for generators of other libraries."""
    return int(key(*parts)) >> 1


def permuted(position: npt.ArrayLike, size: int, permutation_key: int | U64) -> npt.NDArray[np.int64]:
    """Return where a keyed pseudo-random permutation of range(size) sends each position, in O(1) memory.

    A six-round balanced Feistel network over the smallest even-bit power of two >= size, with cycle walking for the
    values that fall outside (Black and Rogaway 2002), so a billion samples are shuffled without an array of them.
    """
    if size < 1:
        raise ValueError(f"size must be positive, got {size}")
    half = max(1, (max(1, (size - 1).bit_length()) + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    base = np.asarray(permutation_key, dtype=np.uint64)
    values = np.atleast_1d(np.asarray(position)).astype(np.uint64)
    if values.size and int(values.max()) >= size:
        raise ValueError(f"position {int(values.max())} is outside range({size})")
    result = values.copy()
    pending = np.arange(values.size)
    flat = result.reshape(-1)
    with np.errstate(over="ignore"):
        round_keys = [_mix(base + np.uint64(r + 1) * _GOLDEN) for r in range(6)]
        while pending.size:
            x = flat[pending]
            left, right = x >> shift, x & mask
            for round_key in round_keys:
                left, right = right, left ^ (_mix(right + round_key) & mask)
            x = (left << shift) | right
            flat[pending] = x
            pending = pending[x >= np.uint64(size)]
    return flat.reshape(np.shape(position)).astype(np.int64)
