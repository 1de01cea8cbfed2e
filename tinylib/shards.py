"""Documents to memory-mapped token files, and the batch of step n as a pure function of (shards, seed, n, batch size).

Every document begins with the BOS id.  A file is read as windows of `seq_len` targets, each token but the file's first
being a target exactly once an epoch; the short tail of a file is a window too.  Nothing remembers where training is:
sample i of all time lies in epoch i // windows, at a place that a seeded permutation of that epoch's windows tells.
So resuming needs no state, and one process or eight, with any micro-batch, slice the same global batch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tinylib import rules, rundir
from tinylib.config import ConfigError
from tinylib.tokenizer import Tokenizer, batched

if TYPE_CHECKING:
    import torch

Rows = range | slice | Sequence[int] | np.ndarray | None
IGNORED = -1
"""The target where there is none; the loss leaves it out."""
_DTYPES = {"uint16": 1 << 16, "uint32": 1 << 32}


def build(documents: Mapping[str, Iterable[str]], tokenizer: Tokenizer, folder: str | os.PathLike[str], *,
          tokens_per_file: int = 100_000_000, progress: bool = False) -> Shards:
    """Encode the documents of each split into `folder`, which appears whole or not at all; opens the first split.

    Streams: memory doesn't grow with the corpus.  A file is closed after the document with which it reaches
    `tokens_per_file`.  Raises ValueError for a split without documents, OSError when the disk is full.
    """
    folder = Path(folder)
    dtype = next(name for name, ids in _DTYPES.items() if tokenizer.vocab_size <= ids)
    with rundir.write_folder(folder) as part:
        index: dict[str, Any] = {"version": 1, "dtype": dtype, "vocab_size": tokenizer.vocab_size,
                                 "tokenizer": tokenizer.fingerprint, "splits": {}}
        for split, texts in documents.items():
            with _Writer(part, split, np.dtype(dtype), tokens_per_file) as writer:
                writer.write(_progress(texts, split) if progress else texts, tokenizer)
            index["splits"][split] = writer.summary()
        tokenizer.save(part / "tokenizer")
        rundir.write_json(part / "index.json", index)
    return Shards(folder, next(iter(documents)))


def open_splits(folder: str | os.PathLike[str], vocab_size: int) -> tuple[Shards, Shards]:
    """Training and validation tokens in `folder`, for a model of `vocab_size`.

    Raises FileNotFoundError where there are none, ConfigError where the tokenizer has more ids than the model has rows.
    """
    training, validation = Shards(folder, "train"), Shards(folder, "val")
    if training.vocab_size > vocab_size:
        raise ConfigError("TrainConfig", [
            f"model.vocab_size={vocab_size} is smaller than the {training.vocab_size} ids of the tokenizer in "
            f"data={str(folder)!r}: use vocab_size={training.vocab_size}, or make shards with another tokenizer"])
    return training, validation


def _progress(texts: Iterable[str], split: str) -> Iterable[str]:
    from tqdm import tqdm

    return tqdm(texts, desc=f"tokens of {split}", unit=" documents", mininterval=1)


@dataclass
class _Writer:
    """The token files of one split, counted and hashed while they are written."""

    folder: Path
    split: str
    dtype: np.dtype
    tokens_per_file: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("documents", "characters", "bytes"), 0))
    files: list[dict[str, Any]] = field(default_factory=list)
    _file: IO[bytes] | None = None
    _hash: Any = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *failure: object) -> None:
        self._close()

    def write(self, texts: Iterable[str], tokenizer: Tokenizer) -> None:
        """Encode and append every text; ValueError if there is none."""
        for batch in batched(texts):
            self.counts["documents"] += len(batch)
            self.counts["characters"] += sum(map(len, batch))
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                self.counts["bytes"] += len(text) if text.isascii() else len(text.encode())
                self._append(np.array([tokenizer.bos, *ids], dtype=self.dtype))
        if not self.files:
            raise ValueError(f"split {self.split!r} has no documents: a corpus of a few is too small to be split")

    def summary(self) -> dict[str, Any]:
        """The entry of this split in the index."""
        return {"files": self.files, **self.counts, "tokens": sum(file["tokens"] for file in self.files)}

    def _append(self, tokens: np.ndarray) -> None:
        if self._file is None:
            name = f"{self.split}_{len(self.files):03d}.bin"
            self._file, self._hash = (self.folder / name).open("wb"), hashlib.sha256()
            self.files.append({"name": name, "tokens": 0})
        data = tokens.tobytes()
        self._file.write(data)
        self._hash.update(data)
        self.files[-1]["tokens"] += len(tokens)
        if self.files[-1]["tokens"] >= self.tokens_per_file:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self.files[-1]["sha256"] = self._hash.hexdigest()
            self._file = None


class Shards:
    """One split of a folder that `build` wrote, memory-mapped and checked on opening."""

    def __init__(self, folder: str | os.PathLike[str], split: str = "train") -> None:
        self.folder = Path(folder)
        self.split = split
        index_file = self.folder / "index.json"
        if not index_file.is_file():
            raise FileNotFoundError(f"no token shards in {self.folder}: run notebook 02, or python -m tinylib tokenize "
                                    "train and tokenize shards")
        self.index: dict[str, Any] = json.loads(index_file.read_text(encoding="utf-8"))
        self._check()
        self._entry = self.index["splits"][split]
        # A plain view, for the memmap class itself makes every slice several times slower.
        self._files = [np.memmap(self.folder / file["name"], dtype=self.index["dtype"], mode="r").view(np.ndarray)
                       for file in self._entry["files"]]

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}, split={self.split!r}, tokens={self.tokens}, vocab_size={self.vocab_size})"

    def _check(self) -> None:
        index, rebuild = self.index, f"build the shards in {self.folder} again"
        if index.get("version") != 1:
            raise ValueError(f"version={index.get('version')!r} of the index is not 1: {rebuild}")
        if index["vocab_size"] > _DTYPES.get(index["dtype"], 0):
            raise ValueError(f"dtype={index['dtype']!r} can't hold vocab_size={index['vocab_size']} ids: {rebuild}")
        if self.split not in index["splits"]:
            raise ValueError(f"split={self.split!r} is not in {self.folder}: splits are {', '.join(index['splits'])}")
        for file in index["splits"][self.split]["files"]:
            path, size = self.folder / file["name"], file["tokens"] * np.dtype(index["dtype"]).itemsize
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {rebuild}")
            if path.stat().st_size != size:
                raise ValueError(f"{path} has {path.stat().st_size} bytes where {size} were written: {rebuild}")

    @property
    def tokens(self) -> int:
        """Number of tokens, the BOS of each document included."""
        return int(self._entry["tokens"])

    @property
    def documents(self) -> int:
        """Number of documents."""
        return int(self._entry["documents"])

    @property
    def characters(self) -> int:
        """Characters of the text."""
        return int(self._entry["characters"])

    @property
    def bytes(self) -> int:
        """Bytes of the text in UTF-8, the denominator of bits per byte."""
        return int(self._entry["bytes"])

    @property
    def vocab_size(self) -> int:
        """Number of ids (V) of the tokenizer."""
        return int(self.index["vocab_size"])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the index, so of every file: what was trained on one set of shards can't resume on another."""
        return hashlib.sha256(json.dumps(self.index, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that encoded the text; ValueError if another one was put in its place."""
        tokenizer = Tokenizer.load(self.folder / "tokenizer")
        if tokenizer.fingerprint != self.index["tokenizer"]:
            raise ValueError(f"the tokenizer in {self.folder} is {tokenizer.fingerprint}, the tokens were made with "
                             f"{self.index['tokenizer']}: build the shards again")
        return tokenizer

    # Windows

    def windows(self, seq_len: int) -> int:
        """How many windows of up to `seq_len` targets an epoch has."""
        return int(self._starts(seq_len)[-1])

    def batch(self, step: int, *, batch_size: int, seq_len: int, seed: int = 0,
              rows: Rows = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of `step`: x_BT and y_BT, int64, of the global batch of `batch_size` sequences.

        `rows` picks rows of the global batch; ranks and accumulation steps each take their own.  Where a window is
        short, inputs end in 0 and targets in -1.
        """
        return self._read(self._windows_of(step, batch_size, seq_len, seed, rows), seq_len)

    def targets(self, step: int, *, batch_size: int, seq_len: int, seed: int = 0) -> int:
        """How many targets (not -1) the whole global batch of `step` holds; reads no tokens."""
        windows = self._windows_of(step, batch_size, seq_len, seed, None)
        file, place = self._locate(windows, seq_len)
        return int(np.minimum(seq_len, self._lengths[file] - 1 - place).sum())

    def in_order(self, seq_len: int, max_windows: int | None = None, *,
                 batch_size: int = 8) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and targets x_BT and y_BT of the first `max_windows` windows, in the order of the files."""
        rules.refuse("Shards", [rules.whole("batch_size", batch_size)])
        last = self.windows(seq_len) if max_windows is None else min(max_windows, self.windows(seq_len))
        for start in range(0, last, batch_size):
            yield self._read(np.arange(start, min(start + batch_size, last)), seq_len)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([file["tokens"] for file in self._entry["files"]], dtype=np.int64)

    def _starts(self, seq_len: int) -> np.ndarray:
        """Number of the first window of each file, and the number of windows as the last entry."""
        rules.refuse("Shards", [rules.whole("seq_len", seq_len)])
        return np.concatenate([[0], np.cumsum(-(-(self._lengths - 1) // seq_len))])

    def _windows_of(self, step: int, batch_size: int, seq_len: int, seed: int, rows: Rows) -> np.ndarray:
        rules.refuse("Shards", [rules.whole("step", step, least=0), rules.whole("batch_size", batch_size)])
        windows = self.windows(seq_len)
        if windows == 0:
            raise ValueError(f"split {self.split!r} of {self.folder} holds {self.tokens} tokens and so no target: "
                             "it needs more text")
        samples = step * batch_size + _chosen(rows, batch_size)
        epochs, positions = samples // windows, samples % windows
        for epoch in np.unique(epochs):
            here = epochs == epoch
            positions[here] = permute(positions[here], windows, seed=seed, epoch=int(epoch))
        return positions

    def _locate(self, windows: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """File of each window, and the token in it with which the window begins."""
        starts = self._starts(seq_len)
        file = np.searchsorted(starts, windows, side="right") - 1
        return file, (windows - starts[file]) * seq_len

    def _read(self, windows: np.ndarray, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        x = np.zeros((len(windows), seq_len), dtype=np.int64)
        y = np.full((len(windows), seq_len), IGNORED, dtype=np.int64)
        for row, (file, place) in enumerate(zip(*self._locate(windows, seq_len), strict=True)):
            tokens = self._files[file][place:place + seq_len + 1]
            x[row, :len(tokens) - 1], y[row, :len(tokens) - 1] = tokens[:-1], tokens[1:]
        return torch.from_numpy(x), torch.from_numpy(y)


def permute(positions: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
    """Where each of `positions` goes in the shuffle of range(size) that `seed` and `epoch` pick, int64.

    A Feistel network on the smallest power of two that holds `size`; what falls outside is sent through again until it
    falls inside.  Integer arithmetic only, so the order is the same on every machine and in every version.

    Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 3.2 (cycle walking); here with
    eight rounds of the SplitMix64 finaliser, which is no cipher but mixes as well as a shuffle needs.

    >>> sorted(permute(np.arange(10), 10, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    bits, keys = max(2, (size - 1).bit_length()), _round_keys(seed, epoch)
    out = _feistel(positions.astype(np.uint64), bits, keys)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], bits, keys)
    return out.astype(np.int64)


def _feistel(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of `bits` bits; the halves may differ by one bit, and swap widths every round."""
    low, high = bits // 2, bits - bits // 2
    left, right = values >> np.uint64(low), values & np.uint64((1 << low) - 1)
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & np.uint64((1 << high) - 1))
        low, high = high, low
    return (left << np.uint64(low)) | right


def _round_keys(seed: int, epoch: int, rounds: int = 8) -> np.ndarray:
    key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    return _mix(_mix(key + np.uint64(epoch)) + np.arange(rounds, dtype=np.uint64))


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's step: every bit of the input changes about half the bits of the output."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _chosen(rows: Rows, batch_size: int) -> np.ndarray:
    """The rows of the global batch as an array; ValueError for a row that isn't in it."""
    every = np.arange(batch_size, dtype=np.int64)
    if rows is None or isinstance(rows, slice):
        return every if rows is None else every[rows]
    chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
    if ((chosen < 0) | (chosen >= batch_size)).any():
        raise ValueError(f"rows={rows!r} are not all in the global batch: rows go from 0 to {batch_size - 1}")
    return chosen
