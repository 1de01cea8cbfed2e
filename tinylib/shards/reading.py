"""Token files as batches.

A file is read as windows of `seq_len` targets, each token but the file's first being a target exactly once an epoch;
the short tail of a file is a window too.  Nothing remembers where training is: sample i of all time lies in epoch
i // windows, at a place that a seeded permutation of that epoch's windows tells.  So resuming needs no state, and one
process or eight, with any micro-batch, slice the same global batch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinylib import checks
from tinylib.checks import UserError
from tinylib.config import ConfigError
from tinylib.shards.order import permute
from tinylib.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

Rows = range | slice | Sequence[int] | np.ndarray | None
IGNORED = -1
"""The target where there is none; the loss leaves it out."""
IDS = {"uint16": 1 << 16, "uint32": 1 << 32}
"""The types of token files, and how many ids each can tell apart."""
_BLOCK = 4096    # samples whose places are computed at once: numpy takes little longer for thousands than for one


@dataclass(frozen=True)
class Batch:
    """The global batch of one step: `rows` sequences of `seq_len` tokens, a pure function of the shards and the seed."""

    step: int
    rows: int
    seq_len: int
    seed: int = 0


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


class Shards:
    """One split of a folder that `build` wrote, memory-mapped and checked on opening: sizes, types, counts.

    `verify` reads the tokens as well.
    """

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
        if index["vocab_size"] > IDS.get(index["dtype"], 0):
            raise ValueError(f"dtype={index['dtype']!r} can't hold vocab_size={index['vocab_size']} ids: {rebuild}")
        if self.split not in index["splits"]:
            raise ValueError(f"split={self.split!r} is not in {self.folder}: splits are {', '.join(index['splits'])}")
        for file in index["splits"][self.split]["files"]:
            path, size = self.folder / file["name"], file["tokens"] * np.dtype(index["dtype"]).itemsize
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {rebuild}")
            if path.stat().st_size != size:
                raise ValueError(f"{path} has {path.stat().st_size} bytes where {size} were written: {rebuild}")

    def verify(self) -> None:
        """Read every file and compare its sha256 with the index; ValueError names one that has changed."""
        for file in self._entry["files"]:
            with (self.folder / file["name"]).open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != file["sha256"]:
                raise ValueError(f"{self.folder / file['name']} has sha256 {found} where {file['sha256']} was written: "
                                 f"build the shards in {self.folder} again")

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

    def check_tokenizer(self, fingerprint: str, where: str) -> None:
        """Raise UserError unless the tokens were made with the tokenizer of this fingerprint, which is `where`."""
        if fingerprint != self.index["tokenizer"]:
            raise UserError(f"the tokens in {self.folder} were made with tokenizer {self.index['tokenizer']}, {where} has "
                            f"{fingerprint}: use shards made with the same tokenizer")

    # Windows

    def windows(self, seq_len: int) -> int:
        """How many windows of up to `seq_len` targets an epoch has."""
        return int(self._starts(seq_len)[-1])

    def batch(self, batch: Batch, rows: Rows = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of a batch: x_BT and y_BT, int64.

        `rows` picks rows of the global batch; ranks and accumulation steps each take their own.  Where a window is
        short, inputs end in 0 and targets in -1.
        """
        return self._read(self._windows_of(batch.step, batch.rows, batch.seq_len, batch.seed, rows), batch.seq_len)

    def targets(self, batch: Batch) -> int:
        """Number of targets (not -1) of a batch; reads no tokens."""
        windows = self._windows_of(batch.step, batch.rows, batch.seq_len, batch.seed, None)
        file, place = self._locate(windows, batch.seq_len)
        return int(np.minimum(batch.seq_len, self._lengths[file] - 1 - place).sum())

    def in_order(self, seq_len: int, max_windows: int | None = None, *,
                 batch_size: int = 8) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and targets x_BT and y_BT of the first `max_windows` windows, in the order of the files."""
        checks.raise_if("Shards", [checks.check_int("batch_size", batch_size)])
        last = self.windows(seq_len) if max_windows is None else min(max_windows, self.windows(seq_len))
        for start in range(0, last, batch_size):
            yield self._read(np.arange(start, min(start + batch_size, last)), seq_len)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([file["tokens"] for file in self._entry["files"]], dtype=np.int64)

    def _starts(self, seq_len: int) -> np.ndarray:
        """Number of the first window of each file, and the number of windows as the last entry."""
        checks.raise_if("Shards", [checks.check_int("seq_len", seq_len)])
        return np.concatenate([[0], np.cumsum(-(-(self._lengths - 1) // seq_len))])

    def _windows_of(self, step: int, batch_size: int, seq_len: int, seed: int, rows: Rows) -> np.ndarray:
        checks.raise_if("Shards", [checks.check_int("step", step, least=0), checks.check_int("batch_size", batch_size)])
        windows = self.windows(seq_len)
        if windows == 0:
            raise ValueError(f"split {self.split!r} of {self.folder} holds {self.tokens} tokens and so no target: "
                             "it needs more text")
        samples = step * batch_size + _chosen(rows, batch_size)
        if not len(samples):
            return samples
        first, last = (int(sample) // _BLOCK for sample in (samples.min(), samples.max()))
        places = [_places(block, windows, seed) for block in range(first, last + 1)]
        return (places[0] if len(places) == 1 else np.concatenate(places))[samples - first * _BLOCK]

    def _locate(self, windows: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """File of each window, and the token in it with which the window begins."""
        starts = self._starts(seq_len)
        file = np.searchsorted(starts, windows, side="right") - 1
        return file, (windows - starts[file]) * seq_len

    def _read(self, windows: np.ndarray, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        rows = np.zeros((len(windows), seq_len + 1), dtype=self.index["dtype"])
        file, place = self._locate(windows, seq_len)
        lengths = np.minimum(seq_len, self._lengths[file] - 1 - place)
        for row, number, start, length in zip(rows, file.tolist(), place.tolist(), lengths.tolist(), strict=True):
            row[:length + 1] = self._files[number][start:start + length + 1]
        x, y = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
        for row in np.flatnonzero(lengths < seq_len):
            x[row, lengths[row]:], y[row, lengths[row]:] = 0, IGNORED
        return torch.from_numpy(x), torch.from_numpy(y)


@lru_cache(maxsize=64)
def _places(block: int, windows: int, seed: int) -> np.ndarray:
    """The window of each of the samples that are `block`, through all epochs."""
    epochs, positions = np.divmod(np.arange(block * _BLOCK, (block + 1) * _BLOCK), windows)
    places = permute(positions, windows, seed=seed, epoch=epochs)
    places.flags.writeable = False
    return places


def _chosen(rows: Rows, batch_size: int) -> np.ndarray:
    """The rows of the global batch as an array; ValueError for a row that isn't in it."""
    if rows is None or isinstance(rows, slice):
        return np.arange(batch_size, dtype=np.int64)[rows or slice(None)]
    chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
    if ((chosen < 0) | (chosen >= batch_size)).any():
        raise ValueError(f"rows={rows!r} are not all in the global batch: rows go from 0 to {batch_size - 1}")
    return chosen
