"""glibc malloc settings: freed memory goes back to the system at once, or is kept for the next tensor."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")

COMMON = """
import ctypes, os, resource
from pathlib import Path
from tinylib.allocator import frugal, hoarding
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""


def output_of(code: str, limits: dict[str, str]) -> str:
    """Standard output of `code` in a process of its own."""
    child = subprocess.run([sys.executable, "-c", COMMON + code], capture_output=True, text=True,
                           env=os.environ | limits)
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.mark.parametrize(("limits", "expected"), [({}, "False\nTrue\n"),
                                                  ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, "True\n")])
def test_frugal_gives_freed_memory_back(limits, expected) -> None:
    """Blocks that glibc would keep are returned; settings of the user win."""
    code = """
def kept(count=200, size=200_000):
    libc.free(libc.malloc(20_000_000))    # raises glibc's dynamic mmap threshold to this size
    blocks, before = [], resident()
    for _ in range(count):
        blocks.append(libc.malloc(size))
        ctypes.memset(blocks[-1], 1, size)
    for block in blocks[:-1]:    # the last one stays, so the heap can't shrink from its end
        libc.free(block)
    return resident() - before
with frugal():
    print(kept() > 20e6)
print(kept() > 20e6)
"""
    assert output_of(code, limits).startswith(expected)


@pytest.mark.parametrize(("limits", "expected"), [({}, "True True\nFalse False\n"),
                                                  ({"MALLOC_MMAP_MAX_": "65536"}, "False False\nFalse False\n")])
def test_hoarding_keeps_freed_memory_for_the_next_tensor(limits, expected) -> None:
    """The next block reuses the pages, without page faults; afterwards they are returned."""
    code = """
def faults(size=64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
once, before = faults(), resident()
with hoarding():
    faults()
    print(faults() < once / 4, resident() - before > 60e6)
print(faults() < once / 4, resident() - before > 10e6)
"""
    assert output_of(code, limits) == expected
