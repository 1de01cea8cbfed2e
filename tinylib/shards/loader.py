"""Prefetch: a thread reads the next batches while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tinylib.shards.reading import Batch, Rows, Shards

if TYPE_CHECKING:
    import torch

    Tensors = tuple[torch.Tensor, torch.Tensor]

AHEAD = 2
"""Batches that are read while the caller works on one."""


class Loader:
    """Inputs and targets of `batches`, in order, for each of `rows` in turn, prefetched by a thread.

    AHEAD of them are read while the caller works on one; with `pin`, into pinned memory, from which that GPU copies
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
                 pin: torch.device | None = None) -> None:
        self._shards, self._pin = shards, pin
        self._loaded = self._prefetch((batch, chosen) for batch in batches for chosen in rows)
        self._thread = ThreadPoolExecutor(1, "tinylib-loader")

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *failure: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Tensors]:
        return self._loaded

    def __next__(self) -> Tensors:
        return next(self._loaded)

    def _prefetch(self, wanted: Iterable[tuple[Batch, Rows]]) -> Iterator[Tensors]:
        reads: deque[Future[Tensors]] = deque()
        for batch, rows in wanted:
            reads.append(self._thread.submit(self._read, batch, rows))
            if len(reads) > AHEAD:
                yield reads.popleft().result()
        while reads:
            yield reads.popleft().result()

    def _read(self, batch: Batch, rows: Rows) -> Tensors:
        if self._pin is None:
            return self._shards.batch(batch, rows)
        import torch

        torch.cuda.set_device(self._pin)    # a thread starts on the first GPU, and would allocate memory there
        x_BT, y_BT = self._shards.batch(batch, rows)
        return x_BT.pin_memory(), y_BT.pin_memory()
