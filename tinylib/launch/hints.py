"""Failure messages mapped to advice: one table, for the commonest causes."""

from __future__ import annotations

import re

KILLED = ("a process was ended by force (kill -9), which is what a system does when its memory is full: halve "
          "device_batch_size, start fewer processes, or close other programs")
PEER_GONE = ("another process, or another machine, of this run went away first: look at its log; resume goes on from "
             "the newest checkpoint")

HINTS: tuple[tuple[str, str], ...] = (
    (r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
     "the GPU's memory is full: halve device_batch_size, which changes nothing but speed, or set recompute=True; other "
     "programs on this GPU take memory too"),
    (r"No space left on device|Disk quota exceeded|os error (?:28|122)|disk is full",
     "the disk is full: free some space and resume; whole checkpoints are untouched"),
    (r"DefaultCPUAllocator|Cannot allocate memory|MemoryError\b|bad_alloc",
     "the machine's memory is full: halve device_batch_size, which changes nothing but speed, start fewer processes, "
     "or set recompute=True"),
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
    (r"illegal memory access",
     "a GPU kernel read or wrote outside its memory: run with CUDA_LAUNCH_BLOCKING=1 to see which operation, and with "
     'compile="off" to see whether it is a compiled one'),
    (r"[Ww]atchdog caught collective operation timeout",
     "one rank did not come to an all-reduce in time, because it hangs, is much slower or has failed: the log that "
     "ends first is its own; resume goes on from the newest checkpoint"),
    (r"unhandled system error|ncclSystemError|unhandled cuda error|ncclUnhandledCudaError",
     "NCCL could not connect the GPUs: NCCL_DEBUG=INFO prints why; in a container give more shared memory "
     "(--shm-size=1g), on several machines name the network in NCCL_SOCKET_IFNAME"),
    (r"Signal 9 \(SIGKILL\)|exitcode\s*: -9", KILLED),
    (r"Connection (?:closed|reset) by peer|Broken pipe|ncclRemoteError|NCCL[^\n]*(?:remote|connection)|"
     "RendezvousConnectionError", PEER_GONE),
)
"""A regular expression for the text of a failure, and the advice; the first that matches counts.

Causes come before their consequences: torchrun kills the ranks that are left, and these lose their peers.
"""


def hint(text: str, killed: bool = False) -> str | None:
    """Advice about a failure with this text; None for a cause that is none of the common ones.

    `killed` says that a rank ended without recording an error.

    >>> hint("OSError: [Errno 98] Address already in use")
    'another program has that port: end it, or choose another port in rdzv_endpoint'
    """
    found = next((advice for pattern, advice in HINTS if re.search(pattern, text)), None)
    return KILLED if killed and found in (None, PEER_GONE) else found
