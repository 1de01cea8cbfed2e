"""Documents to token files, encoded in parallel; finished parts are kept when a build is killed.

Documents are grouped into parts of about PART_CHARACTERS, whatever the number of processes.  The tokens of a part are
in a file named by a hash of text and tokenizer, so the next build of the same documents finds it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from tinylib import checks, files, hardware
from tinylib.checks import UserError
from tinylib.shards.parts import Encoder, read_part
from tinylib.shards.reading import IDS, Shards
from tinylib.tokenizer import Tokenizer, batch_texts
from tinylib.tokenizer.pretokenize import check_text

SHARD_FILES = ("index.json", "tokenizer", "*.bin")
PART_CHARACTERS = 1_000_000
"""Characters that are encoded, hashed and kept together."""


def build(documents: Mapping[str, Iterable[str]], tokenizer: Tokenizer, folder: str | os.PathLike[str], *,
          tokens_per_file: int = 100_000_000, processes: int | None = None, progress: bool = False) -> Shards:
    """Encode the documents of each split into `folder`, atomically; opens the first split.

    Streams: memory doesn't grow with the corpus.  A file is closed after the document with which it reaches
    `tokens_per_file`.  `processes` encode, by default one a core; the files are the same with any number.  Until the
    end, the finished parts take as much disk again as the tokens; a build that was killed leaves them in
    `.FOLDER.part`, and the next one skips them.

    Raises UserError for a split without documents, a document that is no str, a lone surrogate and a killed worker;
    OSError for a full disk, for a folder with other files in it and while another process builds there.
    """
    from tqdm import tqdm

    processes = hardware.cores() if processes is None else processes
    checks.raise_if("build", [
        checks.check_int("tokens_per_file", tokens_per_file), checks.check_int("processes", processes),
        None if documents else "documents has no split: name one, such as train"])
    dtype = dtype_of(tokenizer)
    streams = {split: _not_empty(split, checks.texts(f"split {split!r}", texts)) for split, texts in documents.items()}
    target = Path(folder).resolve()
    files.raise_if_foreign(target, SHARD_FILES)
    with _work_folder(target) as work, files.write_folder(target, SHARD_FILES) as out:
        tokenizer.save(out / "tokenizer")
        token_files = TokenFiles(out, tokens_per_file)
        with Encoder(tokenizer, out / "tokenizer", dtype, work, processes) as encoder, tqdm(
                desc="text to shards", unit=" characters", unit_scale=True, mininterval=1, disable=not progress) as bar:
            for part in _finished(_begun(streams, encoder), 2 * processes):
                counts, tokens = read_part(part.file)
                token_files.append(part.split, counts, tokens, documents=len(counts), characters=part.characters,
                                   bytes=part.bytes)
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
            if finished:
                error.add_note(f"{finished} finished parts are kept in {work}: the same build, run again, skips them")
            raise
        finally:
            if not finished:
                shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _Part:
    """Some documents of a split, the file of their tokens, and the task of the worker that writes it, if any."""

    split: str
    characters: int
    bytes: int
    file: Path
    task: Future[None] | None


def _begun(streams: Mapping[str, Iterable[str]], encoder: Encoder) -> Iterator[_Part]:
    for split, stream in streams.items():
        for texts in batch_texts(map(check_text, stream), PART_CHARACTERS):
            text = "".join(texts)
            yield _Part(split, len(text), len(text.encode()), *encoder.begin(texts))


def _finished(parts: Iterator[_Part], ahead: int) -> Iterator[_Part]:
    """The parts in order, each when it is written, of which up to `ahead` are begun before; raises workers' errors."""
    waiting = deque(islice(parts, ahead))
    while waiting:
        part = waiting.popleft()
        if part.task is not None:
            part.task.result()
        yield part
        waiting.extend(islice(parts, 1))


def dtype_of(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type of a token file that holds every id."""
    return np.dtype(next(name for name, ids in IDS.items() if tokenizer.vocab_size <= ids))


class TokenFiles:
    """Token files of at least `tokens_per_file` tokens each but the last; a file ends with a document."""

    def __init__(self, folder: Path, tokens_per_file: int) -> None:
        self.splits: dict[str, dict[str, Any]] = {}
        self._folder, self._limit = folder, tokens_per_file
        self._hash = sha256()

    def append(self, split: str, lengths: np.ndarray, tokens: np.ndarray, **counts: int) -> None:
        """Write `tokens` to the last file of a split or to new ones; a file may end after each of `lengths`.

        `counts`, such as documents and characters, are added up in the index.
        """
        entry = self.splits.setdefault(split, {"files": [], **dict.fromkeys(counts, 0), "tokens": 0})
        for name, count in (counts | {"tokens": len(tokens)}).items():
            entry[name] += count
        ends, start = np.cumsum(lengths), 0
        while start < len(tokens):
            if not entry["files"] or entry["files"][-1]["tokens"] >= self._limit:
                entry["files"].append({"name": f"{split}_{len(entry['files']):03d}.bin", "tokens": 0})
                self._hash = sha256()
            file = entry["files"][-1]
            end = int(ends[np.searchsorted(ends[:-1], start + self._limit - file["tokens"])])
            with (self._folder / file["name"]).open("ab") as opened:
                opened.write(tokens[start:end].data)
            self._hash.update(tokens[start:end].data)
            file |= {"tokens": file["tokens"] + end - start, "sha256": self._hash.hexdigest()}
            start = end
