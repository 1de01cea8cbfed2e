"""N-gram language model with interpolated Kneser–Ney smoothing, on token ids: the baseline before neural networks.

Source: Kneser and Ney 1995, https://doi.org/10.1109/ICASSP.1995.479394; Chen and Goodman 1999, section 2.7.  Each order
has one discount, n₁ / (n₁ + 2·n₂) of the n-grams with count 1 and 2, from Ney et al. 1994.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class _Order(NamedTuple):
    """The n-grams of one length: sorted keys (context id · V + token), and what a probability needs of them."""

    keys: np.ndarray
    counts: np.ndarray
    """Of each n-gram: occurrences for the longest, else the number of different tokens before it."""
    totals: np.ndarray
    """Sum of `counts` over the n-grams of each context."""
    kinds: np.ndarray
    """Number of different tokens after each context."""
    discount: float


class KneserNey:
    """Interpolated Kneser–Ney model of `order` over a stream of token ids; documents are told apart by their BOS.

    >>> model = KneserNey(np.array([0, 1, 2, 0, 1, 2, 0, 1, 3]), vocab_size=4, order=2)
    >>> model.bits(np.array([0, 1, 2])).round(2).tolist()    # of every id but the first
    [0.07, 0.66]
    """

    def __init__(self, ids: np.ndarray, vocab_size: int, order: int = 5) -> None:
        """Count; takes some 100 bytes a token for a while, and keeps less."""
        self.vocab_size, self.orders = vocab_size, []
        token, context = ids.astype(np.int64), np.zeros(len(ids), np.int64)
        found = []    # of each length: keys, a place of each, and the id of the n-gram that ends at each place
        for n in range(order):
            keys, place, gram = np.unique(context * vocab_size + token[n:], return_index=True, return_inverse=True)
            found.append((keys, place, gram))
            context = gram[:-1]
        for n, (keys, _, gram) in enumerate(found):
            counts = np.bincount(gram if n == order - 1 else gram[found[n + 1][1] + 1], minlength=len(keys))
            context = keys // vocab_size
            once, twice = (max(1, int((counts == number).sum())) for number in (1, 2))
            self.orders.append(_Order(keys, counts, np.bincount(context, counts), np.bincount(context, counts > 0),
                                      once / (once + 2 * twice)))

    def bits(self, ids: np.ndarray) -> np.ndarray:
        """Bits of every id but the first, each after all ids before it."""
        token = ids.astype(np.int64)
        p, context = np.full(len(token), 1 / self.vocab_size), np.zeros(len(token), np.int64)
        for keys, counts, totals, kinds, discount in self.orders:
            key = np.where(context < 0, -1, context * self.vocab_size + token)
            gram = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            known = keys[gram] == key
            total, some = (np.where(context < 0, 0, values[np.minimum(context, len(values) - 1)])
                           for values in (totals, kinds))
            seen = total > 0
            above = np.maximum(np.where(known, counts[gram], 0) - discount, 0)
            p = np.where(seen, (above + discount * some * p) / np.maximum(total, 1), p)
            context = np.concatenate([[-1], np.where(known, gram, -1)[:-1]])
        return -np.log2(p[1:])
