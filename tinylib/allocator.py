"""glibc malloc settings (mallopt): return freed memory to the system, or keep it for the next tensor.

Each setting lasts for a `with` block.  Without glibc, or where the user has set glibc's own variables, nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4    # parameters of mallopt(3), from <malloc.h>
_USER_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


@contextmanager
def frugal() -> Iterator[None]:
    """Fixed mmap threshold of 128 kB: larger blocks go back to the system when they are freed.

    By default the threshold rises to the size of each mapped block that is freed, up to 32 MB, and smaller blocks stay
    in the heap.  In tokenizer training that was a fifth of the peak memory.  Afterwards the thresholds are at the
    values to which they would have risen.
    """
    mallopt = _glibc("mallopt")
    mallopt(_MMAP_THRESHOLD, 128 << 10)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)


@contextmanager
def hoarding() -> Iterator[None]:
    """No mmap and no trimming: freed blocks stay in the heap, for the next tensor of their size.

    By default glibc maps every block of 32 MB or more, and the kernel zeroes its pages each time: a tenth of a training
    step on a CPU.  Afterwards the heap is trimmed.
    """
    mallopt = _glibc("mallopt")
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, 65536)
        mallopt(_TRIM_THRESHOLD, 64 << 20)
        _glibc("malloc_trim")(0)


def _glibc(name: str) -> Callable[..., object]:
    """The glibc function `name`, or a no-op where the settings must stay as they are."""
    if sys.platform == "linux" and not any(variable in os.environ for variable in _USER_SETTINGS):
        return getattr(ctypes.CDLL(None), name, lambda *numbers: None)
    return lambda *numbers: None
