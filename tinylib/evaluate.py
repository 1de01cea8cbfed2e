"""Bits per byte: what a model needs to say each byte of held-out text, whatever its tokenizer.

Bits per byte = Σ -log2 p(token) / Σ UTF-8 bytes, over tokens that stand for text.  Loss per token can't compare two
vocabularies; bits per byte can, and it is what a compressor is judged by too, so `xz` draws the line to beat.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tinylib.model import GPT
from tinylib.shards import Shards

if TYPE_CHECKING:
    import pandas as pd

    from tinylib.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """What a text cost: `nats` over `tokens`, `text_nats` of them over the tokens that make up its `bytes`."""

    nats: float
    tokens: int
    text_nats: float
    bytes: int

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte."""
        return self.text_nats / math.log(2) / self.bytes


def bits_per_byte(model: GPT, shards: Shards, *, max_tokens: int | None = None, batch_size: int = 8) -> float:
    """Bits per byte of `model` on the first `max_tokens` tokens of `shards` (None: all), in windows of its context."""
    return score(model, shards, max_tokens=max_tokens, batch_size=batch_size).bits_per_byte


def score(model: GPT, shards: Shards, *, max_tokens: int | None = None, batch_size: int = 8, rank: int = 0,
          world_size: int = 1, total: Callable[[Tensor], Tensor] = lambda tally: tally) -> Score:
    """`bits_per_byte` with all that it is made of.

    Among several processes each takes every `world_size`-th mini-batch, and `total` adds a tensor up over all of them.
    """
    seq_len = model.config.seq_len
    windows = None if max_tokens is None else max(1, max_tokens // seq_len)
    bytes_V = torch.from_numpy(np.asarray(shards.tokenizer.token_bytes)).to(model.wte.weight.device)
    tally = torch.zeros(4, dtype=torch.float64)
    for index, (x_BT, y_BT) in enumerate(shards.in_order(seq_len, max_windows=windows, batch_size=batch_size)):
        if index % world_size == rank:
            tally += _tally(model, x_BT, y_BT, bytes_V)
    nats, tokens, text_nats, count = total(tally).tolist()
    return Score(nats, int(tokens), text_nats, int(count))


@torch.no_grad()
def _tally(model: GPT, x_BT: Tensor, y_BT: Tensor, bytes_V: Tensor) -> Tensor:
    device = bytes_V.device
    x_BT, y_R = x_BT.to(device), y_BT.to(device).flatten()
    nats_R = model(x_BT, y_R.view_as(x_BT), reduction="none").double()
    counts_R = y_R >= 0
    bytes_R = bytes_V[y_R.clamp(min=0)] * counts_R
    return torch.stack([nats_R.sum(), counts_R.sum(), nats_R[bytes_R > 0].sum(), bytes_R.sum()]).double().cpu()


def document_bits(model: GPT, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 8) -> pd.DataFrame:
    """Each document alone, from its BOS on, in windows of the context: a row with its bytes, tokens and bits."""
    import pandas as pd

    bytes_V = torch.from_numpy(np.asarray(tokenizer.token_bytes)).to(model.wte.weight.device)
    table = np.zeros((len(texts), 3))
    for owners, x_BT, y_BT in _document_windows(tokenizer, texts, model.config.seq_len, batch_size):
        with torch.no_grad():
            nats_BT = model(x_BT.to(bytes_V.device), y_BT.to(bytes_V.device), reduction="none").view_as(y_BT).cpu()
        bytes_BT = bytes_V.cpu()[y_BT.clamp(min=0)] * (y_BT >= 0)
        np.add.at(table, owners, np.stack([bytes_BT.sum(1), (y_BT >= 0).sum(1),
                                           (nats_BT.double() * (bytes_BT > 0)).sum(1) / math.log(2)], axis=1))
    return pd.DataFrame({"bytes": table[:, 0].astype(int), "tokens": table[:, 1].astype(int), "bits": table[:, 2]})


def _document_windows(tokenizer: Tokenizer, texts: Sequence[str], seq_len: int,
                      batch_size: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Mini-batches of windows with the documents they belong to; long windows together, so that little is padding."""
    windows = []
    for owner, ids in enumerate(tokenizer.encode_batch(texts)):
        ids = [tokenizer.bos, *ids]
        windows += [(owner, ids[at:at + seq_len + 1]) for at in range(0, len(ids) - 1, seq_len)]
    windows.sort(key=lambda window: -len(window[1]))
    for first in range(0, len(windows), batch_size):
        chosen = windows[first:first + batch_size]
        longest = len(chosen[0][1]) - 1
        x_BT = torch.zeros(len(chosen), longest, dtype=torch.long)
        y_BT = torch.full_like(x_BT, -1)
        for row, (_, ids) in enumerate(chosen):
            x_BT[row, :len(ids) - 1], y_BT[row, :len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        yield [owner for owner, _ in chosen], x_BT, y_BT


def xz_bits(texts: Iterable[str]) -> list[int]:
    """Bits that `xz -9` needs for each document by itself.

    >>> xz_bits(["a" * 1000]) < [8 * 1000]
    True
    """
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_xz_bits, (text.encode() for text in texts)))


def xz_stream_bits(texts: Iterable[str], training: Iterable[str] = ()) -> int:
    """Bits that `xz -9` needs for all documents as one stream, having read the `training` texts before."""
    before = "\n\n".join(training).encode()
    with ThreadPoolExecutor() as pool:
        whole, known = pool.map(_xz_bits, (before + "\n\n".join(texts).encode(), before))
    return whole - (known if before else 0)


def _xz_bits(data: bytes) -> int:
    return 8 * len(lzma.compress(data, preset=9))
