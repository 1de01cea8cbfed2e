"""The next batches, prepared while the device computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tinylib import checks
from tinylib.shards.reading import Batch, Rows, Shards

if TYPE_CHECKING:
    import torch

Pair = tuple["torch.Tensor", "torch.Tensor"]


class Loader:
    """`batches`, in order, each read by a thread while the one before it is worked on.

    They are those of `Shards.batch`, one for each of `rows` at every step.  `ahead` of them wait ready, with `pin` in
    memory from which that GPU copies by itself.  What goes wrong is raised where the batch is asked for.  The thread
    lives inside the `with` block and not longer, however that ends.

    >>> import tempfile
    >>> from tinylib.shards import Batch, build
    >>> from tinylib.tokenizer import Tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = build({"train": ["the cat sat"]}, Tokenizer.train(["the the"], 267), folder + "/shards")
    ...     with Loader(shards, [Batch(step, 4, 8) for step in range(3)], rows=[range(2), range(2, 4)]) as batches:
    ...         [tuple(x_BT.shape) for x_BT, y_BT in batches]
    [(2, 8), (2, 8), (2, 8), (2, 8), (2, 8), (2, 8)]
    """

    def __init__(self, shards: Shards, batches: Iterable[Batch], *,
                 rows: Sequence[Rows] = (None,), pin: torch.device | None = None, ahead: int = 2) -> None:
        checks.raise_if("Loader", [checks.check_int("ahead", ahead)])
        self._shards, self._batches, self._rows, self._pin = shards, batches, rows, pin
        self._ready: queue.Queue[Pair | BaseException] = queue.Queue(maxsize=ahead)
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

    def __iter__(self) -> Iterator[Pair]:
        return self

    def __next__(self) -> Pair:
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
            for batch in self._batches:
                for rows in self._rows:
                    if self._closed.is_set():
                        return
                    self._ready.put(self._read(batch, rows))
        except BaseException as error:
            last = error
        self._ready.put(last)

    def _read(self, batch: Batch, rows: Rows) -> Pair:
        x_BT, y_BT = self._shards.batch(batch, rows)
        return (x_BT.pin_memory(), y_BT.pin_memory()) if self._pin is not None else (x_BT, y_BT)
