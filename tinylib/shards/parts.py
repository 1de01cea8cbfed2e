"""Parallel encoding: one part of the text in, one file of token ids out, in this process or in loky's workers."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from hashlib import sha256
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np

from tinylib import files
from tinylib.checks import UserError
from tinylib.tokenizer import Tokenizer

_HASH_BYTES = 32


def write_part(file: Path, texts: Sequence[str], tokenizer: Tokenizer, dtype: np.dtype) -> None:
    """Encode `texts` into `file`, atomically: a hash, the number of texts, the ids of each, all ids as `dtype`.

    The ids of a text begin with BOS.
    """
    bos = np.array([tokenizer.bos], dtype=dtype)
    ids = [tokenizer.encode_array(text) for text in texts]
    counts = np.array([len(ids), *(1 + len(of_text) for of_text in ids)], dtype=np.int64)
    tokens = np.concatenate([part for of_text in ids for part in (bos, of_text)], dtype=dtype, casting="unsafe")
    content = counts.tobytes() + tokens.tobytes()
    files.write_bytes(file, sha256(content).digest() + content)


def read_part(file: Path, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray] | None:
    """Number of ids of each text, and all ids; None unless the file is there and whole."""
    if not file.is_file():
        return None
    data = file.read_bytes()
    if sha256(memoryview(data)[_HASH_BYTES:]).digest() != data[:_HASH_BYTES]:
        return None    # after a power cut, a file may have its name and not its content
    count = int(np.frombuffer(data, dtype=np.int64, count=1, offset=_HASH_BYTES)[0])
    counts = np.frombuffer(data, dtype=np.int64, count=count, offset=_HASH_BYTES + 8)
    return counts, np.frombuffer(data, dtype=dtype, offset=_HASH_BYTES + 8 * (1 + count))


class Workers:
    """A pool of worker processes that starts with the first task and is gone at the end of the `with` block.

    The text of a task goes through a file in `spool`, because a pipe that is full when a worker dies blocks loky.
    Unlike those of `multiprocessing`, loky's workers don't run the caller's script again.
    """

    def __init__(self, count: int, spool: Path) -> None:
        self.count, self._spool, self._tasks = count, spool, 0
        self._executor: Any = None

    def __enter__(self) -> Workers:
        shutil.rmtree(self._spool, ignore_errors=True)    # of a build that was killed
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=True)
        shutil.rmtree(self._spool, ignore_errors=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError("a process that encodes text was killed: if memory ran out, use fewer processes") from error

    def submit(self, file: Path, texts: bytes, tokenizer: Path, dtype: np.dtype) -> Future[None]:
        """Have a worker write the part `file` from `texts`: a line with their lengths in JSON, then all in UTF-8."""
        if self._executor is None:
            from joblib.externals.loky import ProcessPoolExecutor

            self._spool.mkdir()
            resource_tracker.ensure_running()    # it unblocks signals when it starts, see below
            self._executor = ProcessPoolExecutor(self.count, initializer=_start, initargs=(os.getpid(),))
        self._tasks += 1
        spooled = self._spool / f"{self._tasks}"
        spooled.write_bytes(texts)
        # A worker inherits the blocked signal, so that Ctrl-C reaches the parent alone, even while a worker starts.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return self._executor.submit(_work, spooled, tokenizer, file, dtype)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(parent: int) -> None:
    """Prepare a worker to exit when its parent is killed."""
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(spooled: Path, tokenizer: Path, file: Path, dtype: np.dtype) -> None:
    lengths, _, text = spooled.read_bytes().partition(b"\n")
    spooled.unlink()
    characters = io.StringIO(text.decode(), newline="")
    write_part(file, [characters.read(length) for length in json.loads(lengths)], _load(tokenizer), dtype)


_load = lru_cache(maxsize=1)(Tokenizer.load)
