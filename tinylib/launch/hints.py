"""From what a failed run said to what to do about it: one table, for the commonest causes."""

from __future__ import annotations

import re

HINTS: tuple[tuple[str, str], ...] = (
    (r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
     "the GPU's memory is full: halve device_batch_size, which changes nothing but speed, or set recompute=True; other "
     "programs on this GPU take memory too"),
    (r"No space left on device|Disk quota exceeded|os error (?:28|122)|disk is full",
     "the disk is full: free some space and resume; whole checkpoints are untouched"),
    (r"DefaultCPUAllocator|Cannot allocate memory|MemoryError\b|bad_alloc",
     "the machine's memory is full: halve device_batch_size, which changes nothing but speed, start fewer processes, "
     "or set recompute=True"),
    (r"(?:is gone|ended) without a word|Signal 9 \(SIGKILL\)|exitcode\s*: -9",
     "a process was ended by force (kill -9), which is what a system does when its memory is full: halve "
     "device_batch_size, start fewer processes, or close other programs"),
    (r"EADDRINUSE|[Aa]ddress already in use",
     "another program has that port: end it, or choose another port in rdzv_endpoint"),
    (r"vocab_size=\d+ is smaller|index out of range in self|device-side assert|IndexKernel|vectorized_gather",
     "the shards hold token ids that this model's vocabulary lacks: make vocab_size that of the tokenizer which wrote "
     "them, or write the shards anew"),
    (r"no token shards in|FileNotFoundError: .*(?:shards|tokenizer|index\.json|\.bin)",
     'the data is missing: write it with "python -m tinylib tokenize shards", or set data to the folder of the shards'),
    (r"is not on this machine|not compiled with CUDA|No CUDA GPUs are available|no kernel image|(?i:bf16|bfloat16|half)"
     r"[^\n]* not (?:supported|implemented)|not (?:supported|implemented)[^\n]*(?i:bf16|bfloat16|half)",
     'this machine lacks that device or precision: device="auto" and dtype="auto" take what it has'),
    (r"Connection (?:closed|reset) by peer|Broken pipe|NCCL[^\n]*(?:remote|connection)|RendezvousConnectionError",
     "another process, or another machine, of this run went away first: look at its log; resume goes on from the "
     "newest checkpoint"),
)
"""What is found in the words of a failure, as a regular expression, and what to do; the first that is found counts."""


def hint(text: str) -> str | None:
    """What to do about a failure that said `text`; None if its cause is none of the common ones.

    >>> hint("OSError: [Errno 98] Address already in use")
    'another program has that port: end it, or choose another port in rdzv_endpoint'
    """
    return next((advice for pattern, advice in HINTS if re.search(pattern, text)), None)
