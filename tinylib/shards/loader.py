"""Prefetch: a thread reads the next batches while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from tinylib import checks
from tinylib.shards.reading import Batch, Rows, Shards

if TYPE_CHECKING:
    import torch

    Tensors = tuple[torch.Tensor, torch.Tensor]


class Loader:
    """Inputs and targets of `batches`, in order, for each of `rows` in turn, prefetched by a thread.

    `ahead` of them are read while the caller works on one; with `pin`, into pinned memory, from which that GPU copies
    asynchronously.  An error is raised where the batch is asked for.  The thread ends with the `with` block.

    >>> import tempfile
    >>> from tinylib.shards import build
    >>> from tinylib.tokenizer import Tokenizer
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = build({"train": ["the cat sat"]}, Tokenizer.train(["the the"], 267), folder + "/shards")
    ...     with Loader(shards, [Batch(0, 4, 8), Batch(1, 4, 8)], rows=[range(2), range(2, 4)]) as loaded:
    ...         [tuple(x_BT.shape) for x_BT, y_BT in loaded]
    [(2, 8), (2, 8), (2, 8), (2, 8)]
    """

    def __init__(self, shards: Shards, batches: Iterable[Batch], *, rows: Sequence[Rows] = (None,),
                 pin: torch.device | None = None, ahead: int = 2) -> None:
        checks.raise_if("Loader", [checks.check_int("ahead", ahead)])
        self._shards, self._pin, self._ahead = shards, pin, ahead
        self._wanted = ((batch, chosen) for batch in batches for chosen in rows)
        self._reads: deque[Future[Tensors]] = deque()
        self._thread = ThreadPoolExecutor(1, "tinylib-loader")

    def __enter__(self) -> Loader:
        self._read_ahead(self._ahead)
        return self

    def __exit__(self, *failure: object) -> None:
        self._reads.clear()
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Tensors]:
        return self

    def __next__(self) -> Tensors:
        if not self._reads:
            raise StopIteration
        self._read_ahead(1)
        try:
            return self._reads.popleft().result()
        except BaseException:
            self._reads.clear()
            raise

    def _read_ahead(self, count: int) -> None:
        for batch, rows in islice(self._wanted, count):
            self._reads.append(self._thread.submit(self._read, batch, rows))

    def _read(self, batch: Batch, rows: Rows) -> Tensors:
        if self._pin is None:
            return self._shards.batch(batch, rows)
        import torch

        torch.cuda.set_device(self._pin)    # a thread starts on the first GPU, and would allocate memory there
        x_BT, y_BT = self._shards.batch(batch, rows)
        return x_BT.pin_memory(), y_BT.pin_memory()
