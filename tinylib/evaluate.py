"""Bits per byte of a model: of shards, of documents, by source and kind; confidence intervals.

Bits per byte = Σ -log2 p(token) / Σ UTF-8 bytes, over the tokens that are text.  Unlike the loss per token it compares
models with different vocabularies, and models with compressors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tinylib.checks import UserError, check_int, raise_if
from tinylib.generate import check_tokenizer
from tinylib.model import GPT
from tinylib.shards import Shards

if TYPE_CHECKING:
    import pandas as pd

    from tinylib.corpus import Document
    from tinylib.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """Summed cross-entropy of a text."""

    nats: float
    tokens: int
    text_nats: float
    """Nats of the tokens that are text; special tokens have no bytes."""
    bytes: int
    """UTF-8 bytes of the text."""
    stops: int = 0
    """Processes that stopped early; if not 0, the other fields cover only a part of the text."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token; UserError where there is none."""
        if not self.tokens:
            raise UserError("the evaluated text has no targets: evaluate more of it")
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte; UserError where none of the tokens is text."""
        if not self.bytes:
            raise UserError("the evaluated tokens hold no text: evaluate more of them")
        return self.text_nats / math.log(2) / self.bytes


def bits_per_byte(model: GPT, shards: Shards, *, max_tokens: int | None = None, batch_size: int = 8) -> float:
    """Bits per byte of `model` on the first `max_tokens` tokens of `shards` (None: all), in windows of `seq_len`."""
    return score(model, shards, max_tokens=max_tokens, batch_size=batch_size).bits_per_byte


def score(model: GPT, shards: Shards, *, max_tokens: int | None = None, batch_size: int = 8, rank: int = 0,
          world_size: int = 1, all_reduce_sum: Callable[[Tensor], Tensor] = lambda tally: tally,
          stop_requested: Callable[[], bool] = lambda: False) -> Score:
    """Cross-entropy of `model` on `shards`, with the sums that `bits_per_byte` is computed from.

    With several processes each evaluates every `world_size`-th mini-batch; `all_reduce_sum` adds up their tallies.
    A process calls `stop_requested` before each mini-batch and stops if it returns True.  Raises ConfigError for a
    `max_tokens` below 1; None evaluates all.
    """
    raise_if("score", [None if max_tokens is None else check_int("max_tokens", max_tokens)])
    seq_len = model.config.seq_len
    windows = None if max_tokens is None else max(1, max_tokens // seq_len)
    place = torch.device("cpu") if model.device.type == "mps" else model.device    # MPS has no float64
    bytes_V = torch.from_numpy(shards.tokenizer.token_bytes).to(place)
    sums, stops = torch.zeros(4, dtype=torch.float64, device=place), 0
    for index, (x_BT, y_BT) in enumerate(shards.in_order(seq_len, max_windows=windows, batch_size=batch_size)):
        if index % world_size == rank:
            if stop_requested():
                stops = 1
                break
            sums += _sums(model, shards, x_BT, y_BT, bytes_V)
    tally = torch.tensor([*sums.tolist(), stops], dtype=torch.float64)
    nats, tokens, text_nats, count, stops = all_reduce_sum(tally).tolist()
    return Score(nats, int(tokens), text_nats, int(count), int(stops))


@torch.no_grad()
def _sums(model: GPT, shards: Shards, x_BT: Tensor, y_BT: Tensor, bytes_V: Tensor) -> Tensor:
    """Nats, targets, nats of text and bytes of one mini-batch in float64, without waiting for a GPU."""
    x_BT, y_BT = (tensor.to(model.device, non_blocking=True) for tensor in (x_BT, y_BT))
    nats_R = model(x_BT, y_BT, reduction="none", segment_BT=shards.segments(x_BT)).to(bytes_V.device).double()
    y_R = y_BT.flatten().to(bytes_V.device)
    bytes_R = torch.where(y_R >= 0, bytes_V[y_R.clamp(min=0)], 0)
    return torch.stack([nats_R.sum(), (y_R >= 0).sum(), (nats_R * (bytes_R > 0)).sum(), bytes_R.sum()])


@torch.no_grad()
def unused_probability(model: GPT, shards: Shards, max_tokens: int = 16_384) -> float:
    """Mean probability that `model` gives to ids that the tokenizer of `shards` lacks, on the first `max_tokens`.

    A table of more rows than the tokenizer has ids has them; they are never sampled, but cost loss.
    """
    windows, parts = max(1, max_tokens // model.config.seq_len), []
    for x_BT, y_BT in shards.in_order(model.config.seq_len, max_windows=windows):
        probability_BTV = model(x_BT.to(model.device)).softmax(-1)
        parts.append(probability_BTV[..., shards.vocab_size:].sum(-1).cpu()[y_BT >= 0])
    return float(torch.cat(parts).mean())


def document_bits(model: GPT, shards: Shards, batch_size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of each document, read as `score` reads them, so their sums give its bits per byte.

    A document begins where its BOS is the input; the bits of that BOS itself are no text and left out.
    """
    parts, bytes_V, bos = [], torch.from_numpy(shards.tokenizer.token_bytes), shards.tokenizer.bos
    with torch.no_grad():
        for x_BT, y_BT in shards.in_order(model.config.seq_len, batch_size=batch_size):
            nats_R = model(x_BT.to(model.device), y_BT.to(model.device), reduction="none").cpu().double()
            is_target, x_R, y_R = (y_BT >= 0).flatten(), x_BT.flatten(), y_BT.flatten().clamp(min=0)
            parts.append(torch.stack([x_R == bos, nats_R / math.log(2), bytes_V[y_R]])[:, is_target])
    begins, bits, sizes = torch.cat(parts, dim=1).numpy()
    document = begins.cumsum().astype(int) - 1
    return np.bincount(document, bits * (sizes > 0)), np.bincount(document, sizes)


def token_bits(model: GPT, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 8) -> pd.DataFrame:
    """Bits of each token, every document read alone from its BOS on, in windows of `seq_len`; one row per token.

    Columns: `document`, the index in `texts`; `place`, the index of the token in its document; `seen`, the number of
    tokens in its context, at least 1 (the BOS, or the last token of the window before); `bytes`; `bits`.
    """
    import pandas as pd

    check_tokenizer(model, tokenizer)
    bytes_V = torch.from_numpy(tokenizer.token_bytes)
    device, parts = model.device, [np.zeros((5, 0))]
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


def by_document(model: GPT, tokenizer: Tokenizer, documents: Sequence[Document], batch_size: int = 8) -> pd.DataFrame:
    """Bits and bytes of each document, read alone from its BOS on, with its `name`, `source` and `kind`."""
    import pandas as pd

    tokens = token_bits(model, tokenizer, [document.text for document in documents], batch_size)
    facts = pd.DataFrame([(some.name, some.source, some.kind) for some in documents],
                         columns=["name", "source", "kind"])
    return facts.join(tokens.groupby("document")[["bytes", "bits"]].sum(), how="inner")


def by_group(documents: pd.DataFrame, column: str | Callable[[int], str]) -> pd.DataFrame:
    """Bits per byte of each group of a table of `by_document`, with its 95% interval over documents; largest first.

    A group of one document has the interval of 0 to infinity.
    """
    import pandas as pd

    rows = {}
    for name, group in documents.groupby(column):
        low, high = bootstrap(group.bits, group.bytes) if len(group) > 1 else (0, math.inf)
        rows[name] = {"documents": len(group), "bytes": group.bytes.sum(),
                      "bits_per_byte": group.bits.sum() / group.bytes.sum(), "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("bytes", ascending=False)


def _document_windows(tokenizer: Tokenizer, texts: Sequence[str], seq_len: int,
                      batch_size: int) -> Iterator[tuple[list[tuple[int, int]], Tensor, Tensor]]:
    """Mini-batches of windows with (document, start) of each, sorted by length so that little is padding."""
    windows = []
    for owner, ids in enumerate(tokenizer.encode_batch(texts)):
        ids = [tokenizer.bos, *ids]
        windows += [((owner, at), ids[at:at + seq_len + 1]) for at in range(0, len(ids) - 1, seq_len)]
    windows.sort(key=lambda window: -len(window[1]))
    for first in range(0, len(windows), batch_size):
        places, ids = zip(*windows[first:first + batch_size], strict=True)
        x_BT = pad_sequence([torch.tensor(row[:-1]) for row in ids], batch_first=True)
        y_BT = pad_sequence([torch.tensor(row[1:]) for row in ids], batch_first=True, padding_value=-1)
        yield list(places), x_BT, y_BT


def bootstrap(bits: Sequence[float], sizes: Sequence[float]) -> tuple[float, float]:
    """Bootstrap 95% confidence interval of Σ bits / Σ sizes over documents, from 2000 samples.

    Source: Efron 1979, https://doi.org/10.1214/aos/1176344552; the percentile method.

    >>> bootstrap([4.0, 4.0, 4.0], [2.0, 2.0, 2.0])
    (2.0, 2.0)
    """
    drawn = np.random.default_rng(0).integers(len(bits), size=(2000, len(bits)))
    ratios = np.asarray(bits, dtype=float)[drawn].sum(1) / np.asarray(sizes, dtype=float)[drawn].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t 95% confidence interval of the mean of a few `values`, such as one per seed.

    Raises ValueError for fewer than two values.

    Source: Student 1908, https://doi.org/10.1093/biomet/6.1.1.

    >>> low, high = t_interval([1.0, 2.0, 3.0])
    >>> f"{low:.2f} to {high:.2f}"
    '-0.48 to 4.48'
    """
    from scipy import stats

    if len(values) < 2:
        raise ValueError(f"values={list(values)} have no spread: give two or more")
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(low), float(high)
