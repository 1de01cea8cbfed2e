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
    stops: int = 0
    """Processes that were asked to stop before they were through; with any, the rest is of a part of the text."""

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
          world_size: int = 1, all_reduce_sum: Callable[[Tensor], Tensor] = lambda tally: tally,
          stop_requested: Callable[[], bool] = lambda: False) -> Score:
    """`bits_per_byte` with all that it is made of.

    Among several processes each takes every `world_size`-th mini-batch, and `all_reduce_sum` adds a tensor up over all.
    Each asks `stop_requested` before every mini-batch, and ends where it says so.
    """
    seq_len = model.config.seq_len
    windows = None if max_tokens is None else max(1, max_tokens // seq_len)
    bytes_V = torch.from_numpy(shards.tokenizer.token_bytes)
    tally = torch.zeros(5, dtype=torch.float64)
    for index, (x_BT, y_BT) in enumerate(shards.in_order(seq_len, max_windows=windows, batch_size=batch_size)):
        if index % world_size == rank:
            if stop_requested():
                tally[4] = 1
                break
            tally[:4] += _tally(model, x_BT, y_BT, bytes_V)
    nats, tokens, text_nats, count, stops = all_reduce_sum(tally).tolist()
    return Score(nats, int(tokens), text_nats, int(count), int(stops))


@torch.no_grad()
def _tally(model: GPT, x_BT: Tensor, y_BT: Tensor, bytes_V: Tensor) -> Tensor:
    """Nats, targets, nats of text and bytes of one mini-batch, in float64 on the CPU, which not every GPU has."""
    device, y_R = model.wte.weight.device, y_BT.flatten()
    nats_R = model(x_BT.to(device), y_BT.to(device), reduction="none").cpu().double()
    counts_R = y_R >= 0
    bytes_R = bytes_V[y_R.clamp(min=0)] * counts_R
    return torch.stack([nats_R.sum(), counts_R.sum(), nats_R[bytes_R > 0].sum(), bytes_R.sum()]).double()


def document_bits(model: GPT, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 8) -> pd.DataFrame:
    """Each document alone, from its BOS on, in windows of the context: a row with its bytes, tokens and bits."""
    table = token_bits(model, tokenizer, texts, batch_size).groupby("document").agg(
        bytes=("bytes", "sum"), tokens=("bits", "size"), bits=("bits", "sum"))
    return table.reindex(range(len(texts)), fill_value=0).rename_axis(None)


def token_bits(model: GPT, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 8) -> pd.DataFrame:
    """`document_bits` in full: a row for each token, in the order of the texts.

    Columns: `document` says which of `texts`, `place` which of its tokens, both from 0; `seen` is how many tokens the
    model had before it, from 1, for the BOS or the last token of the former window counts; then its `bytes` and `bits`.
    """
    import pandas as pd

    bytes_V = torch.from_numpy(tokenizer.token_bytes)
    device, parts = model.wte.weight.device, [np.zeros((5, 0))]
    for windows, x_BT, y_BT in _document_windows(tokenizer, texts, model.config.seq_len, batch_size):
        with torch.no_grad():
            nats_BT = model(x_BT.to(device), y_BT.to(device), reduction="none").view_as(y_BT).cpu()
        row, column = (y_BT >= 0).nonzero(as_tuple=True)
        document, start = torch.tensor(windows)[row].T
        parts.append(torch.stack([document, start + column, column + 1, bytes_V[y_BT[row, column]],
                                  nats_BT[row, column].double() / math.log(2)]).numpy())
    table = dict(zip(("document", "place", "seen", "bytes", "bits"), np.concatenate(parts, axis=1), strict=True))
    whole = dict.fromkeys(("document", "place", "seen", "bytes"), int)
    return pd.DataFrame(table).astype(whole).sort_values(["document", "place"], ignore_index=True)


def _document_windows(tokenizer: Tokenizer, texts: Sequence[str], seq_len: int,
                      batch_size: int) -> Iterator[tuple[list[tuple[int, int]], Tensor, Tensor]]:
    """Mini-batches of windows, with document and start of each; long windows together, so that little is padding."""
    windows = []
    for owner, ids in enumerate(tokenizer.encode_batch(texts)):
        ids = [tokenizer.bos, *ids]
        windows += [((owner, at), ids[at:at + seq_len + 1]) for at in range(0, len(ids) - 1, seq_len)]
    windows.sort(key=lambda window: -len(window[1]))
    for first in range(0, len(windows), batch_size):
        chosen = windows[first:first + batch_size]
        longest = len(chosen[0][1]) - 1
        x_BT = torch.zeros(len(chosen), longest, dtype=torch.long)
        y_BT = torch.full_like(x_BT, -1)
        for row, (_, ids) in enumerate(chosen):
            x_BT[row, :len(ids) - 1], y_BT[row, :len(ids) - 1] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        yield [where for where, _ in chosen], x_BT, y_BT


def bootstrap(bits: Sequence[float], sizes: Sequence[float], *, level: float = 0.95, samples: int = 2000,
              seed: int = 0) -> tuple[float, float]:
    """Interval of Σ bits / Σ sizes, had chance picked other documents: they are drawn anew, with replacement.

    Source: Efron 1979, https://doi.org/10.1214/aos/1176344552; the percentile method.

    >>> bootstrap([4.0, 4.0, 4.0], [2.0, 2.0, 2.0])
    (2.0, 2.0)
    """
    drawn = np.random.default_rng(seed).integers(len(bits), size=(samples, len(bits)))
    ratios = np.asarray(bits, dtype=float)[drawn].sum(1) / np.asarray(sizes, dtype=float)[drawn].sum(1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean that a few `values`, such as one for each seed, are drawn around.

    Raises ValueError for fewer than two values.

    Source: Student 1908, https://doi.org/10.1093/biomet/6.1.1.

    >>> low, high = t_interval([1.0, 2.0, 3.0])
    >>> f"{low:.2f} to {high:.2f}"
    '-0.48 to 4.48'
    """
    from scipy import stats

    if len(values) < 2:
        raise ValueError(f"values={list(values)} have no spread: give two or more")
    mean = float(np.mean(values))
    reach = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return mean - reach, mean + reach


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
