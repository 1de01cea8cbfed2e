"""Seeded permutation of an epoch's windows, computed by a Feistel network and never stored."""

from __future__ import annotations

import numpy as np


def permute(positions: np.ndarray, size: int, *, seed: int, epoch: int | np.ndarray) -> np.ndarray:
    """Pseudorandom permutation of range(size) at `positions`, picked by `seed` and `epoch`, int64.

    `epoch` is one number, or an array with one for each position.  A Feistel network on the smallest power of two that
    holds `size`; a value outside goes through again until it falls inside (cycle walking).  Integer arithmetic only, so
    the order is the same on every machine and in every version.

    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 3.2 (cycle walking); here with
    eight rounds of the SplitMix64 finaliser, which is no cipher but mixes well enough for a shuffle.

    >>> sorted(permute(np.arange(10), 10, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    bits, keys = max(2, (size - 1).bit_length()), _round_keys(seed, np.broadcast_to(epoch, positions.shape))
    out = _feistel(positions.astype(np.uint64), bits, keys)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], bits, keys[:, outside])
    return out.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """Feistel network on `bits` bits; the halves may differ by one bit, and swap widths every round."""
    low, high = bits // 2, bits - bits // 2
    left, right = values >> np.uint64(low), values & np.uint64((1 << low) - 1)
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & np.uint64((1 << high) - 1))
        low, high = high, low
    return (left << np.uint64(low)) | right


def _round_keys(seed: int, epochs: np.ndarray, rounds: int = 8) -> np.ndarray:
    """Round keys of shape (rounds, positions); those of an epoch are computed once."""
    key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    distinct, which = np.unique(epochs, return_inverse=True)
    keys = _mix(_mix(key + distinct.astype(np.uint64)) + np.arange(rounds, dtype=np.uint64)[:, None])
    return keys[:, which]


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's step: every bit of the input changes about half the bits of the output."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
