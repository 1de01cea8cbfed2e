"""Baselines for a language model on the same text: guessing, n-grams, `xz`; paired comparison; verbatim copies.

A baseline is the number of bits that each document costs.  Of `xz` on one stream, where a document is cheaper for what
stands before it, it is that of each of a few groups of documents.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from tinylib.checks import UserError
from tinylib.evaluate import bootstrap, t_interval
from tinylib.ngram import KneserNey

if TYPE_CHECKING:
    import pandas as pd

    from tinylib.model import GPT
    from tinylib.tokenizer import Tokenizer

GROUPS = 8
"""Groups of documents, where `xz` reads one stream: each is a run of `xz` over all the text before."""


def baselines(tokenizer: Tokenizer, texts: Sequence[str], training: Sequence[str]) -> dict[str, np.ndarray]:
    """Bits of `texts` by each baseline, from ignorant to unfair; those that learn have read the `training` texts."""
    read = np.concatenate([[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(training)])
    counted = {name: ngram_bits(KneserNey(read, tokenizer.vocab_size, order), tokenizer, texts)
               for name, order in (("unigram", 1), ("5-gram, Kneser–Ney", 5))}
    return {"uniform": uniform_bits(tokenizer, texts), **counted, "xz -9, each document": xz_bits(texts),
            "xz -9, one stream": xz_stream_bits(texts), "xz -9, given the training text":
            xz_stream_bits(texts, training)}


def against(bits: Sequence[float], baselines: Mapping[str, np.ndarray], sizes: Sequence[int]) -> pd.DataFrame:
    """Compare a model's `bits` of documents of `sizes` bytes with `baselines`, paired: one row per baseline.

    Columns, in bits per byte: `bits_per_byte` of the baseline; `difference`, the model less the baseline, with `low`
    and `high` of its 95% interval, by bootstrap over documents, or by Student's t over groups of them.

    >>> against([8, 8], {"uniform": np.array([16, 24])}, [2, 2])
             bits_per_byte  difference  low  high
    uniform           10.0        -6.0 -8.0  -4.0
    """
    import pandas as pd

    if len(sizes) < 2:
        raise UserError(f"{len(sizes)} document is too few for an interval: compare on two or more")
    rows, total = {}, sum(sizes)
    for name, theirs in baselines.items():
        by_document = len(theirs) == len(sizes)
        groups = np.arange(len(sizes)) if by_document else grouped(sizes)
        size, apart = np.bincount(groups, sizes), np.bincount(groups, bits) - theirs
        low, high = bootstrap(apart, size) if by_document else t_interval(apart / size)
        rows[name] = {"bits_per_byte": sum(theirs) / total, "difference": sum(apart) / total, "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def with_weights(model: GPT, bits: float, size: int) -> float:
    """Bits per byte of a text of `size` bytes, if whoever unpacks it must be sent the weights too, at 16 bits each."""
    return (bits + 16 * sum(weight.numel() for weight in model.parameters())) / size


def uniform_bits(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Bits of each text where all tokens are equally likely."""
    return np.array([math.log2(tokenizer.vocab_size) * len(ids) for ids in tokenizer.encode_batch(texts)])


def ngram_bits(model: KneserNey, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Bits of each text under an n-gram model of the same tokens, read from its BOS on."""
    streams = [[tokenizer.bos, *ids] for ids in tokenizer.encode_batch(texts)]
    bits, sizes = model.bits(np.concatenate(streams)), [len(ids) for ids in streams]
    return np.array([bits[end - size:end - 1].sum() for size, end in zip(sizes, np.cumsum(sizes), strict=True)])


def xz_bits(texts: Iterable[str]) -> np.ndarray:
    """Compressed size in bits of each document on its own, by `xz -9`.

    >>> bool(xz_bits(["a" * 1000]) < 8 * 1000)
    True
    """
    return _xz(text.encode() for text in texts)


def xz_stream_bits(texts: Sequence[str], training: Iterable[str] = ()) -> np.ndarray:
    """Bits that each group of documents (`grouped`) adds to one stream, by `xz -9` after the `training` texts.

    So `xz` may copy from training texts and from the documents before.
    """
    encoded = [text.encode() for text in texts]
    group = grouped([len(text) for text in encoded])
    before = b"".join(text.encode() + b"\n\n" for text in training)
    streams = [before]
    for number in range(group[-1] + 1):
        streams.append(streams[-1] + b"".join(encoded[at] + b"\n\n" for at in np.flatnonzero(group == number)))
    return np.diff(_xz(streams))


def grouped(sizes: Sequence[int]) -> np.ndarray:
    """Group of each document: neighbors, in up to GROUPS groups of about the same number of bytes.

    >>> grouped([1] * 12).tolist()
    [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7]
    """
    middle = np.cumsum(sizes) - np.asarray(sizes) / 2
    return np.unique((middle * GROUPS / np.sum(sizes)).astype(int), return_inverse=True)[1]


def _xz(data: Iterable[bytes]) -> np.ndarray:
    with ThreadPoolExecutor(max_workers=4) as pool:    # of 0.7 GB each
        return np.array(list(pool.map(lambda some: 8 * len(lzma.compress(some, preset=9)), data)))


def longest_copy(text: str, training: str) -> str:
    """Longest run of `text` that occurs verbatim in `training`: a measure of memorization.

    Takes about a second for 200 characters and 10 MB.

    >>> longest_copy("Return the mean of a list", "Returns the mean of all values")
    ' the mean of a'
    """
    best, start = "", 0
    while start + len(best) < len(text):
        if (longer := text[start:start + len(best) + 1]) in training:
            best = longer
        else:
            start += 1
    return best
