"""Encoding in parallel: a part of the text goes to a child process, the bytes of a token file come back.

The children are plain processes at the end of a pipe.  Those of `multiprocessing` would run an unguarded script of the
caller's again, and a fork would copy the locks of torch's threads.  A child ends with its pipe, so none outlives its
parent, however that dies.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from tinylib.tokenizer import Tokenizer

Encoded = tuple[np.ndarray, bytes]
"""How many ids each text has, its BOS among them, and all these ids one after the other."""


class Workers:
    """As many threads as child processes, each with one that it starts when first needed."""

    def __init__(self, tokenizer: Path, dtype: np.dtype, processes: int) -> None:
        self._command = [sys.executable, "-c", "from tinylib.shards import workers; workers.work()", str(tokenizer),
                         dtype.name]
        self.processes = processes
        self._pool = ThreadPoolExecutor(processes)
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children: list[_Child] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *failure: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for child in self._children:
            child.close()

    def submit(self, message: bytes) -> Future[Encoded]:
        """The ids of the texts in `message`, which `pack` made."""
        return self._pool.submit(self._encode, message)

    def _encode(self, message: bytes) -> Encoded:
        try:
            child = self._free.get_nowait()
        except queue.Empty:    # no more threads than processes, so no more children either
            child = _Child(self._command)
            self._children.append(child)
        answer = child.ask(message)
        self._free.put(child)
        return answer


class _Child:
    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout

    def ask(self, message: bytes) -> Encoded:
        try:
            _send(self._to, b"", message)
            counts, tokens = _receive(self._from)
        except OSError as error:
            code = self._process.wait()
            raise RuntimeError(f"a process that encodes text ended with {code}: if that is -9, memory ran out, so use "
                               "fewer processes") from error
        if not counts:
            raise RuntimeError(f"a process that encodes text failed:\n{tokens.decode()}")
        return np.frombuffer(counts, dtype=np.int64), tokens

    def close(self) -> None:
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):    # of a child that died with a message half read
                pipe.close()
        self._process.wait()


def pack(texts: Sequence[str]) -> bytes:
    """`texts` as one message: their number, the length of each in UTF-8, and their bytes."""
    encoded = [text.encode() for text in texts]
    return np.array([len(texts), *map(len, encoded)], dtype=np.int64).tobytes() + b"".join(encoded)


def unpack(message: bytes) -> list[str]:
    """The texts that `pack` packed.

    >>> unpack(pack(["é", "", "ab"]))
    ['é', '', 'ab']
    """
    count = int(np.frombuffer(message, dtype=np.int64, count=1)[0])
    ends = 8 * (count + 1) + np.cumsum(np.frombuffer(message, dtype=np.int64, count=count, offset=8))
    starts = [8 * (count + 1), *ends.tolist()]
    return [message[start:end].decode() for start, end in zip(starts, ends.tolist(), strict=False)]


def encode(texts: Sequence[str], tokenizer: Tokenizer, dtype: np.dtype) -> Encoded:
    """The ids of `texts` in this process, each text's after a BOS."""
    bos = np.array([tokenizer.bos], dtype=dtype)
    ids = [tokenizer.encode_array(text) for text in texts]
    counts = np.array([1 + len(of_text) for of_text in ids], dtype=np.int64)
    tokens = np.concatenate([part for of_text in ids for part in (bos, of_text)], dtype=dtype, casting="unsafe")
    return counts, tokens.tobytes()


def work() -> None:
    """What a child does: answer each message with counts and ids, or with no counts and its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C reaches the whole group; the parent decides
    tokenizer, dtype = Tokenizer.load(sys.argv[1]), np.dtype(sys.argv[2])
    while True:
        try:
            _, message = _receive(sys.stdin.buffer)
            try:
                counts, tokens = encode(unpack(message), tokenizer, dtype)
                answer = counts.tobytes(), tokens
            except Exception:
                answer = b"", traceback.format_exc().encode()
            _send(sys.stdout.buffer, *answer)
        except OSError:    # the parent has gone
            return


def _send(pipe: IO[bytes], first: bytes, second: bytes) -> None:
    pipe.write(np.array([len(first), len(second)], dtype=np.int64).tobytes())
    pipe.write(first)
    pipe.write(second)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[bytes, bytes]:
    lengths = np.frombuffer(_exactly(pipe, 16), dtype=np.int64)
    first, second = (_exactly(pipe, int(length)) for length in lengths)
    return first, second


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise BrokenPipeError("the process at the other end has gone")
    return data
