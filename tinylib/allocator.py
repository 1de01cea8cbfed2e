"""What becomes of memory that is freed: by glibc's own rule neither the system nor the next tensor gets it for sure.

Both ways are asked of glibc while they last.  Where there is none, or the user set its limits, nothing is changed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4    # names of mallopt(3), in <malloc.h>
_USERS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


@contextmanager
def frugal() -> Iterator[None]:
    """While this lasts every block of 128 kB or more is mapped, so that freeing it frees memory.

    By itself glibc begins so, but raises that limit with each such block that is freed, up to 32 MB, and keeps what is
    smaller: in training a tokenizer a fifth of the peak, for nobody.  Afterwards the limits are what they would have
    grown to.
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
    """While this lasts a freed block stays with the process, for the next tensor of its size.

    By itself glibc maps every block of 32 MB or more anew, and the system fills it with zeros, page by page, each time:
    a tenth of the time of a training step on a CPU.  Afterwards what is free goes back.
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
    """A function of glibc, or one that does nothing."""
    theirs = sys.platform != "linux" or any(variable in os.environ for variable in _USERS)
    return getattr(ctypes.CDLL(None), name, _nothing) if not theirs else _nothing


def _nothing(*numbers: int) -> None:
    pass
