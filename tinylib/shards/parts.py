"""Parallel encoding: a part of the text in, a file of token ids out, in this process or in loky's workers."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
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

SMALL_CHARACTERS = 4_000_000
"""So much text is encoded in this process: workers take longer to start."""


def write_part(file: Path, texts: list[str], tokenizer: Tokenizer, dtype: np.dtype) -> None:
    """Encode `texts` into `file`, atomically, in numpy's npz format: number of ids of each text, then all ids.

    The ids of a text begin with BOS.
    """
    bos = np.array([tokenizer.bos])
    ids = [np.concatenate([bos, tokenizer.encode_array(text)], dtype=dtype, casting="unsafe") for text in texts]
    content = io.BytesIO()
    np.savez(content, counts=[len(of_text) for of_text in ids], tokens=np.concatenate(ids))
    files.write_bytes(file, content.getvalue())


def read_part(file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Number of ids of each text, and all ids; None unless the file is there and whole, by its checksums."""
    try:
        with np.load(io.BytesIO(file.read_bytes())) as arrays:
            return arrays["counts"], arrays["tokens"]
    except Exception:    # a power cut may leave the name without the content, which fails in many ways
        return None


class Encoder:
    """Encodes parts into files in `work`: the first few here, the others in `processes` workers.

    The workers start when they are needed and are gone, with their parts finished, at the end of the `with` block.
    Unlike those of `multiprocessing`, loky's workers don't run the caller's script again.  The text of a part goes
    through a file, because a pipe that is full when a worker dies blocks loky.
    """

    def __init__(self, tokenizer: Tokenizer, saved: Path, dtype: np.dtype, work: Path, processes: int) -> None:
        """`saved` is the folder of the tokenizer."""
        self.processes = processes
        self._tokenizer, self._saved, self._dtype = tokenizer, saved, dtype
        self._work, self._spool = work, work / "text"
        self._tasks = self._characters = 0
        self._executor: Any = None
        # Ctrl-C raises in the main thread alone, so in this one it can't leave loky half started.
        self._thread = ThreadPoolExecutor(1, initializer=_block_ctrl_c)

    def __enter__(self) -> Encoder:
        shutil.rmtree(self._spool, ignore_errors=True)    # of a build that was killed
        self._spool.mkdir()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown()
        if self._executor is not None:
            self._executor.shutdown()    # with kill_workers=True, now and then, a thread of loky's prints a KeyError
        shutil.rmtree(self._spool, ignore_errors=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError("a process that encodes text was killed: if memory ran out, use fewer processes") from error

    def begin(self, texts: list[str]) -> tuple[Path, Future[None] | None]:
        """The file of a part, and the task of the worker that writes it; None if it is written."""
        content = f"{json.dumps([len(text) for text in texts])}\n".encode() + "".join(texts).encode()
        file = self._work / f"{sha256(self._tokenizer.fingerprint.encode() + content).hexdigest()}.bin"
        self._characters += sum(map(len, texts))
        if read_part(file) is not None:
            return file, None
        if self.processes == 1 or self._characters <= SMALL_CHARACTERS:
            write_part(file, texts, self._tokenizer, self._dtype)
            return file, None
        self._tasks += 1
        spooled = self._spool / str(self._tasks)
        spooled.write_bytes(content)
        return file, self._thread.submit(self._submit, _work, spooled, self._saved, file, self._dtype).result()

    def _submit(self, *task: Any) -> Future[None]:
        if self._executor is None:
            from joblib.externals.loky import ProcessPoolExecutor

            self._executor = ProcessPoolExecutor(self.processes, initializer=_exit_with_parent, initargs=(os.getpid(),))
        return self._executor.submit(*task)


def _block_ctrl_c() -> None:
    """Block SIGINT in this thread; the workers that it starts inherit that, so that they leave Ctrl-C to the parent."""
    if hasattr(signal, "pthread_sigmask"):    # POSIX
        resource_tracker.ensure_running()    # it unblocks SIGINT when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def _exit_with_parent(parent: int) -> None:
    """Prepare a worker to exit when its parent is killed."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(spooled: Path, tokenizer: Path, file: Path, dtype: np.dtype) -> None:
    lengths, _, text = spooled.read_bytes().partition(b"\n")
    spooled.unlink()
    characters = io.StringIO(text.decode(), newline="")
    write_part(file, [characters.read(length) for length in json.loads(lengths)], _load(tokenizer), dtype)


_load = lru_cache(maxsize=1)(Tokenizer.load)
