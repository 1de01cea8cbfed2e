"""KV cache: keys and values of past tokens, so that a decoding step computes one token.

Letters in shapes: B batch, T tokens, N heads, H head dim.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class KVCache:
    """KV cache of a GPT: keys and values of past tokens, for `batch_size` sequences of up to `capacity` tokens.

    The sequences may have different lengths.  They can leave, and others join, between two forward passes: `lengths`
    has one entry for each that is there, at most `batch_size`.
    """

    def __init__(self, model: nn.Module, batch_size: int, capacity: int) -> None:
        config = model.config
        shape = (config.depth, 2, batch_size, config.n_head, capacity, config.head_dim)
        self._store = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self.capacity = capacity
        self.lengths = [0] * batch_size
        """Number of cached tokens of each sequence, T₀."""

    @property
    def start(self) -> int | Tensor:
        """Position of the next token: one for all sequences if they have the same length, else [B]."""
        same = len(set(self.lengths)) <= 1
        return max(self.lengths, default=0) if same else torch.tensor(self.lengths, device=self._store.device)

    def extend(self, layer: int, k_BNTH: Tensor, v_BNTH: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values of T tokens to `layer`; returns all T₀ + T, of the longest sequence.

        Raises ValueError if it is full, or if T is not 1 and the sequences have different lengths.
        """
        rows, tokens, start = len(self.lengths), k_BNTH.shape[2], self.start
        end = max(self.lengths, default=0) + tokens
        if end > self.capacity:
            raise ValueError(f"KVCache: {end} tokens do not fit capacity={self.capacity}: make a larger cache")
        keys, values = self._store[layer, :, :rows]
        if isinstance(start, int):
            keys[:, :, start:end], values[:, :, start:end] = k_BNTH, v_BNTH
        elif tokens == 1:
            row = torch.arange(rows, device=start.device)
            keys[row, :, start], values[row, :, start] = k_BNTH[:, :, 0], v_BNTH[:, :, 0]
        else:
            raise ValueError(f"KVCache: {tokens} tokens for sequences of different lengths: pass one at a time")
        return keys[:, :, :end], values[:, :, :end]

    def select(self, rows: list[int], capacity: int) -> KVCache:
        """A cache of the sequences `rows`, which may repeat, with room for `capacity` tokens."""
        chosen, length = copy.copy(self), max(self.lengths, default=0)
        shape = (*self._store.shape[:2], len(rows), self._store.shape[3], capacity, self._store.shape[5])
        chosen._store, chosen.capacity = self._store.new_zeros(shape), capacity
        chosen.lengths = [self.lengths[row] for row in rows]
        chosen._store[..., :length, :] = self._store[:, :, rows, :, :length]
        return chosen

    def put(self, row: int, other: KVCache) -> None:
        """Copy the first sequence of `other` to `row`: over one that is there, or behind the last."""
        length = other.lengths[0]
        self._store[:, :, row, :, :length] = other._store[:, :, 0, :, :length]
        self.lengths[row:row + 1] = [length]

    def remove(self, row: int) -> None:
        """Drop a sequence; the last one moves to its row."""
        last = len(self.lengths) - 1
        self._store[:, :, row, :, :self.lengths[last]] = self._store[:, :, last, :, :self.lengths[last]]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def advance(self, tokens: int) -> None:
        """Add `tokens` to each length, after every layer was extended by them."""
        self.lengths = [length + tokens for length in self.lengths]
