"""Documents to token files, encoded in parallel; finished parts are kept when a build is killed.

Documents are grouped into parts of about PART_CHARACTERS, whatever the number of processes.  The tokens of a part are
in a file named by a hash of text and tokenizer, so the next build of the same documents finds it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tinylib import checks, files, hardware
from tinylib.checks import UserError
from tinylib.shards.parts import Workers, read_part, write_part
from tinylib.shards.reading import IDS, Shards
from tinylib.tokenizer import Tokenizer, batch_texts
from tinylib.tokenizer.pretokenize import check_text

PART_CHARACTERS = 1_000_000
"""Characters that are encoded, hashed and kept together."""
SMALL_CHARACTERS = 4_000_000
"""So much text is encoded in this process: workers take longer to start."""


def build(documents: Mapping[str, Iterable[str]], tokenizer: Tokenizer, folder: str | os.PathLike[str], *,
          tokens_per_file: int = 100_000_000, processes: int | None = None, progress: bool = False) -> Shards:
    """Encode the documents of each split into `folder`, atomically; opens the first split.

    Streams: memory doesn't grow with the corpus.  A file is closed after the document with which it reaches
    `tokens_per_file`.  `processes` encode, by default one a core; the files are the same with any number.  Until the
    end, the finished parts take as much disk again as the tokens; a build that was killed leaves them in
    `.FOLDER.part`, and the next one skips them.

    Raises UserError for a split without documents, a lone surrogate and a killed worker; OSError for a full disk and
    while another process builds there.
    """
    from tqdm import tqdm

    processes = hardware.cores() if processes is None else processes
    checks.raise_if("build", [
        checks.check_int("tokens_per_file", tokens_per_file), checks.check_int("processes", processes),
        None if documents else "documents has no split: name one, such as train"])
    dtype = np.dtype(next(name for name, ids in IDS.items() if tokenizer.vocab_size <= ids))
    streams = {split: _not_empty(split, texts) for split, texts in documents.items()}
    target = Path(folder)
    with _work_folder(target) as work, files.write_folder(target) as out:
        tokenizer.save(out / "tokenizer")
        token_files = _TokenFiles(out, tokens_per_file)
        with Workers(processes, work / "text") as workers, tqdm(
                desc="text to shards", unit=" characters", unit_scale=True, mininterval=1, disable=not progress) as bar:
            for part in _Encoder(tokenizer, out / "tokenizer", dtype, work, workers).parts(streams):
                token_files.append(part, *read_part(part.file, dtype))
                bar.update(part.characters)
        files.write_json(out / "index.json", {
            "version": 1, "dtype": dtype.name, "vocab_size": tokenizer.vocab_size, "tokenizer": tokenizer.fingerprint,
            "splits": token_files.splits})
    return Shards(folder, next(iter(documents)))


def _not_empty(split: str, texts: Iterable[str]) -> Iterator[str]:
    """`texts`, whose first is read now, before hours go into the splits before it."""
    stream = iter(texts)
    for first in stream:
        return chain([first], stream)
    raise UserError(f"split {split!r} has no documents: a corpus of a few is too small to be split")


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """The folder of finished parts beside `target`, locked; removed at the end, unless an error leaves parts in it."""
    from filelock import FileLock, Timeout

    work = target.with_name(f".{target.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(work / "lock").acquire(blocking=False)
    except Timeout:
        raise BlockingIOError(errno.EWOULDBLOCK, "another process builds these shards: wait for it, or stop it",
                              str(target)) from None
    finished = 0
    with lock:
        try:
            yield work
        except BaseException as error:
            finished = len([*work.glob("*.bin")])
            kept = f"{finished} finished parts are kept in {work}"
            if finished and isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise OSError(errno.ENOSPC, f"no space left on the disk, {kept}: free some and run again",
                              str(target)) from error
            if finished:
                error.add_note(f"{kept}: the same build, run again, skips them")
            raise
        finally:
            if not finished:
                shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _Part:
    """Some documents of a split, and the file of their tokens."""

    split: str
    documents: int
    characters: int
    bytes: int
    file: Path


@dataclass
class _Encoder:
    """Turns documents into parts; those that a killed build finished are not encoded again."""

    tokenizer: Tokenizer
    saved: Path
    dtype: np.dtype
    work: Path
    workers: Workers
    _characters: int = 0

    def parts(self, streams: Mapping[str, Iterable[str]]) -> Iterator[_Part]:
        """The finished parts in the order of the documents, of which twice as many as workers are read ahead."""
        waiting: deque[tuple[_Part, Future[None] | None]] = deque()
        for split, stream in streams.items():
            for texts in batch_texts(stream, PART_CHARACTERS):
                waiting.append(self._begin(split, texts))
                yield from _finished(waiting, 2 * self.workers.count)
        yield from _finished(waiting, 0)

    def _begin(self, split: str, texts: list[str]) -> tuple[_Part, Future[None] | None]:
        """A part, and the task of the worker that writes it; None if it is written."""
        lengths, text = [len(check_text(text)) for text in texts], "".join(texts).encode()
        spooled = f"{json.dumps(lengths)}\n".encode() + text
        name = sha256(self.tokenizer.fingerprint.encode() + spooled).hexdigest()
        part = _Part(split, len(texts), sum(lengths), len(text), self.work / f"{name}.bin")
        self._characters += part.characters
        if read_part(part.file, self.dtype) is not None:
            return part, None
        if self.workers.count > 1 and self._characters > SMALL_CHARACTERS:
            return part, self.workers.submit(part.file, spooled, self.saved, self.dtype)
        write_part(part.file, texts, self.tokenizer, self.dtype)
        return part, None


def _finished(waiting: deque[tuple[_Part, Future[None] | None]], most: int) -> Iterator[_Part]:
    """Take the first parts until `most` wait; raises what went wrong in a worker."""
    while len(waiting) > most:
        part, task = waiting.popleft()
        if task is not None:
            task.result()
        yield part


class _TokenFiles:
    """Token files of at least `tokens_per_file` tokens each but the last; a file ends with a document."""

    def __init__(self, folder: Path, tokens_per_file: int) -> None:
        self.splits: dict[str, dict[str, Any]] = {}
        self._folder, self._limit = folder, tokens_per_file
        self._hash = sha256()

    def append(self, part: _Part, counts: np.ndarray, tokens: np.ndarray) -> None:
        """Write `tokens`, of which each document has `counts`, to the last file of the part's split or to new ones."""
        entry = self.splits.setdefault(part.split, {"files": [], "documents": 0, "characters": 0, "bytes": 0,
                                                    "tokens": 0})
        for name in ("documents", "characters", "bytes"):
            entry[name] += getattr(part, name)
        entry["tokens"] += len(tokens)
        ends, start = np.cumsum(counts), 0
        while start < len(tokens):
            if not entry["files"] or entry["files"][-1]["tokens"] >= self._limit:
                entry["files"].append({"name": f"{part.split}_{len(entry['files']):03d}.bin", "tokens": 0})
                self._hash = sha256()
            file = entry["files"][-1]
            end = int(ends[np.searchsorted(ends[:-1], start + self._limit - file["tokens"])])
            with (self._folder / file["name"]).open("ab") as opened:
                opened.write(tokens[start:end].data)
            self._hash.update(tokens[start:end].data)
            file |= {"tokens": file["tokens"] + end - start, "sha256": self._hash.hexdigest()}
            start = end
