"""Memory-mapped token files, and the batch of a step as a stateless function of (shards, step, rows, seq_len, seed).

A file is read as windows of `seq_len` targets, the short tail of the file included: each token but the file's first is
a target exactly once an epoch.  Sample i since the start of training is in epoch i // windows, and a seeded permutation
of that epoch's windows gives its place.  So resuming needs no state, and any number of processes with any micro-batch
slice the same global batch.

Conversations are packed into windows of one `seq_len`; only the assistant's tokens are targets.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinylib import checks, files
from tinylib.checks import ConfigError, UserError
from tinylib.shards.order import permute
from tinylib.tokenizer import Tokenizer, in_answer

if TYPE_CHECKING:
    import torch

Rows = Sequence[int] | np.ndarray | None
"""Some rows of a global batch; None for all."""
IGNORED = -1
"""Padding of the targets; the loss leaves it out."""
IDS = {"uint16": 1 << 16, "uint32": 1 << 32}
"""Data types of token files, and the number of ids that each can hold."""


@dataclass(frozen=True)
class Batch:
    """The global batch of a step: `rows` sequences of `seq_len` tokens, in the order that `seed` picks.

    >>> Batch(step=0, rows=0, seq_len=64)
    Traceback (most recent call last):
        ...
    tinylib.checks.ConfigError: Batch: rows=0 is not a whole number of at least 1: use 1 or more
    """

    step: int
    rows: int
    seq_len: int
    seed: int = 0

    def __post_init__(self) -> None:
        checks.raise_if("Batch", [checks.check_int("step", self.step, least=0), checks.check_int("rows", self.rows),
                                  checks.check_int("seq_len", self.seq_len)])


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
    """One split of a folder that `build` wrote, memory-mapped.

    Opening checks that every file has its size; `verify` reads the tokens too.  Raises FileNotFoundError for missing
    files, UserError for files that were changed and a split that isn't there.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str = "train") -> None:
        self.folder = Path(folder)
        self.split = split
        index = files.read_json(self.folder / "index.json")
        if index is None:
            raise FileNotFoundError(f"no token shards in {self.folder}: run notebook 02, or python -m tinylib tokenize "
                                    "train and tokenize shards")
        self.index = index
        self._check()
        entry = self.index["splits"][split]
        self.tokens: int = entry["tokens"]    # with the BOS of each document
        self.documents: int = entry["documents"]
        self.characters: int = entry["characters"]
        self.bytes: int = entry["bytes"]    # of the text in UTF-8, the denominator of bits per byte
        self.vocab_size: int = self.index["vocab_size"]
        self.packed: int | None = self.index.get("packed")    # seq_len of the windows that hold whole conversations
        self._lengths = np.array([file["tokens"] for file in entry["files"]], dtype=np.int64)
        # A plain view, because the memmap class makes every slice several times slower.
        self._files = [np.memmap(self.folder / file["name"], dtype=self.index["dtype"], mode="r").view(np.ndarray)
                       for file in entry["files"]]

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}, split={self.split!r}, tokens={self.tokens}, vocab_size={self.vocab_size})"

    def _check(self) -> None:
        index, rebuild = self.index, f"build the shards in {self.folder} again"
        if index.get("version") != 1:
            raise UserError(f"version={index.get('version')!r} of the index is not 1: {rebuild}")
        if self.split not in index["splits"]:
            raise UserError(f"split={self.split!r} is not in {self.folder}: splits are {', '.join(index['splits'])}")
        for file in index["splits"][self.split]["files"]:
            path, size = self.folder / file["name"], file["tokens"] * np.dtype(index["dtype"]).itemsize
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: {rebuild}")
            if path.stat().st_size != size:
                raise UserError(f"{path} has {path.stat().st_size} bytes where {size} were written: {rebuild}")

    def verify(self) -> None:
        """Read every file and compare its sha256 with the index; UserError names one that has changed."""
        for file in self.index["splits"][self.split]["files"]:
            with (self.folder / file["name"]).open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != file["sha256"]:
                raise UserError(f"{self.folder / file['name']} has sha256 {found} where {file['sha256']} was written: "
                                f"build the shards in {self.folder} again")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the index, so of every token and of the tokenizer; resuming a run needs the same."""
        return hashlib.sha256(json.dumps(self.index, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that encoded the text; ConfigError if the folder now holds another one."""
        tokenizer = Tokenizer.load(self.folder / "tokenizer")
        self.check_tokenizer(tokenizer.fingerprint, str(self.folder / "tokenizer"))
        return tokenizer

    def check_tokenizer(self, fingerprint: str, where: str) -> None:
        """Raise ConfigError unless `fingerprint`, of the tokenizer found at `where`, is that of these tokens.

        The ids of two tokenizers mean different text, even where their number is the same.
        """
        if fingerprint != self.index["tokenizer"]:
            raise ConfigError("Shards", [
                f"the tokens in {self.folder} were made with tokenizer {self.index['tokenizer']}, {where} has "
                f"{fingerprint}: build the shards with that tokenizer, or use those that it made"])

    # Windows

    def ids(self, most: int | None = None) -> np.ndarray:
        """The first `most` token ids of the split (None: all), the BOS of each document among them."""
        parts, left = [], self.tokens if most is None else most
        for file in self._files:
            parts.append(file[:left])
            left -= len(parts[-1])
        return np.concatenate(parts)

    def texts(self, most: int = 1_000_000) -> list[str]:
        """The whole documents in the first `most` token ids, decoded; UserError if there is none.

        Raises UserError if the shards hold conversations, which are no texts.
        """
        if self.packed:
            raise UserError(f"{self.folder} holds packed conversations, not texts: use the shards of documents")
        ids = self.ids(most)
        bos = np.flatnonzero(ids == self.tokenizer.bos)
        ends = [*bos[1:], len(ids)] if most >= self.tokens else bos[1:]
        if not len(ends):
            raise UserError(f"most={most} holds no whole document of {self.folder}: take more tokens")
        return [self.tokenizer.decode(ids[start + 1:end]) for start, end in zip(bos, ends, strict=False)]

    def windows(self, seq_len: int) -> int:
        """Number of windows of up to `seq_len` targets in an epoch."""
        return int(self._starts(seq_len)[-1])

    def batch(self, batch: Batch, rows: Rows = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs x_BT and targets y_BT of `batch`, int64, or of some of its `rows`.

        Each rank and accumulation step takes its own rows.  In a short window, inputs are padded with 0, targets with
        -1.
        """
        return self._read(self._windows_of(batch, rows), batch.seq_len)

    def targets(self, batch: Batch) -> int:
        """Number of targets (not -1) in the whole global batch; reads no tokens but, once, those of conversations."""
        windows = self._windows_of(batch, None)
        if self.packed:
            return int(self._answer_tokens_W[windows].sum())
        file, place = self._locate(windows, batch.seq_len)
        return int(np.minimum(batch.seq_len, self._lengths[file] - 1 - place).sum())

    @cached_property
    def _answer_tokens_W(self) -> np.ndarray:
        """Number of targets of each window of packed conversations."""
        return np.concatenate([(y_BT >= 0).sum(1).numpy() for _, y_BT in self.in_order(self.packed, batch_size=1024)])

    def segments(self, x_BT: torch.Tensor) -> torch.Tensor | None:
        """The number of each token's conversation in its window, for `GPT`; None unless they are packed."""
        return (x_BT == self.tokenizer.bos).cumsum(1) if self.packed else None

    def in_order(self, seq_len: int, max_windows: int | None = None, *,
                 batch_size: int = 8) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs and targets x_BT and y_BT of the first `max_windows` windows, in the order of the files."""
        checks.raise_if("Shards", [checks.check_int("batch_size", batch_size)])
        last = self.windows(seq_len) if max_windows is None else min(max_windows, self.windows(seq_len))
        for start in range(0, last, batch_size):
            yield self._read(np.arange(start, min(start + batch_size, last)), seq_len)

    def _starts(self, seq_len: int) -> np.ndarray:
        """Number of the first window of each file, and the number of windows as the last entry."""
        checks.raise_if("Shards", [
            checks.check_int("seq_len", seq_len), None if self.packed in (None, seq_len) else
            f"seq_len={seq_len} is not the {self.packed} into which the conversations in {self.folder} are packed: use "
            f"seq_len={self.packed}, or build them again"])
        return np.concatenate([[0], np.cumsum(-(-(self._lengths - 1) // seq_len))])

    def _windows_of(self, batch: Batch, rows: Rows) -> np.ndarray:
        windows = self.windows(batch.seq_len)
        if windows == 0:
            raise UserError(f"split {self.split!r} of {self.folder} holds {self.tokens} tokens and so no target: "
                            "it needs more text")
        chosen = np.asarray(range(batch.rows) if rows is None else rows, dtype=np.int64)
        if ((chosen < 0) | (chosen >= batch.rows)).any():
            raise UserError(f"rows={rows!r} are not all in the global batch: rows go from 0 to {batch.rows - 1}")
        epochs, positions = np.divmod(batch.step * batch.rows + chosen, windows)
        return permute(positions, windows, seed=batch.seed, epoch=epochs)

    def _locate(self, windows: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """File of each window, and the place in it of the window's first token."""
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
        if self.packed:
            y[~in_answer(self.tokenizer, x) | (y == self.tokenizer.bos)] = IGNORED
        return torch.from_numpy(x), torch.from_numpy(y)
