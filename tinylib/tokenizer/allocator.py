"""Memory that training frees goes back to the system at once."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3    # names of mallopt(3), in <malloc.h>


@contextmanager
def frugal() -> Iterator[None]:
    """While this lasts glibc maps every block of 128 kB or more, so that freeing it frees memory.

    By itself glibc begins so, but raises that limit with each such block that is freed, up to 32 MB, and keeps what is
    smaller: in training a fifth of the peak, for nobody.  Afterwards the limits are what they would have grown to.
    Where there is no glibc, or the user set its limits, nothing is changed.
    """
    chosen = "MALLOC_MMAP_THRESHOLD_" in os.environ or "MALLOC_TRIM_THRESHOLD_" in os.environ
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not chosen else None
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, 128 << 10)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)
