"""The next batches, prepared while the device computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tinylib import checks
from tinylib.shards.reading import Rows, Shards

if TYPE_CHECKING:
    import torch

Batch = tuple["torch.Tensor", "torch.Tensor"]


class Loader:
    """The batches of `steps`, in order, each read by a thread while the one before it is worked on.

    They are those of `Shards.batch`, one for each of `rows` at every step.  `ahead` of them wait ready, with `pin` in
    memory from which that GPU copies by itself.  What goes wrong is raised where the batch is asked for.  The thread
    lives inside the `with` block and not longer, however that ends.

    >>> import tempfile
    >>> from tinylib.shards import build
    >>> from tinylib.tokenizer import Tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = build({"train": ["the cat sat"]}, Tokenizer.train(["the the"], 267), folder + "/shards")
    ...     with Loader(shards, range(3), batch_size=4, seq_len=8, rows=[range(2), range(2, 4)]) as batches:
    ...         [tuple(x_BT.shape) for x_BT, y_BT in batches]
    [(2, 8), (2, 8), (2, 8), (2, 8), (2, 8), (2, 8)]
    """

    def __init__(self, shards: Shards, steps: Iterable[int], *, batch_size: int, seq_len: int, seed: int = 0,
                 rows: Sequence[Rows] = (None,), pin: torch.device | None = None, ahead: int = 2) -> None:
        checks.raise_if("Loader", [checks.check_int("ahead", ahead)])
        self._shards, self._steps, self._rows, self._pin = shards, steps, rows, pin
        self._size = {"batch_size": batch_size, "seq_len": seq_len, "seed": seed}
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="tinylib-loader", daemon=True)

    def __enter__(self) -> Loader:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._closed.set()
        while not self._ready.empty():    # room for a thread that waits for it
            self._ready.get_nowait()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed.is_set():
            raise StopIteration
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._closed.set()
            raise found
        return found

    def _fill(self) -> None:
        last: BaseException = StopIteration()
        try:
            if self._pin is not None:
                import torch

                torch.cuda.set_device(self._pin)    # a thread begins on the first GPU, and would take memory there
            for step in self._steps:
                for rows in self._rows:
                    if self._closed.is_set():
                        return
                    self._ready.put(self._read(step, rows))
        except BaseException as error:
            last = error
        self._ready.put(last)

    def _read(self, step: int, rows: Rows) -> Batch:
        x_BT, y_BT = self._shards.batch(step, rows=rows, **self._size)
        return (x_BT.pin_memory(), y_BT.pin_memory()) if self._pin is not None else (x_BT, y_BT)
