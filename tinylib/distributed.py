"""Distributed training: init of the process group, all-reduce, coordinated stop, records of failed ranks."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinylib import hardware
from tinylib.checks import UserError
from tinylib.rundir import RunDirectory

TIMEOUT = timedelta(minutes=10)
"""A rank that waits longer for the others fails: longer than any of them compiles or saves."""


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees it: `rank` of `size`, on `device`."""

    rank: int
    size: int
    device: torch.device

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """All-reduce in place: the sum of `tensor` over all ranks, by gloo for a tensor on the CPU, else by NCCL."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


@contextlib.contextmanager
def init_distributed(kind: str = "auto") -> Iterator[World]:
    """Init the process group that torchrun asks for by its environment variables; without them a world of one.

    Tensors on a GPU are reduced by NCCL, those on the CPU by gloo.  torchrun gives every process one CPU thread; here
    the cores are divided among the processes of a machine.  After an error the group is not destroyed, because NCCL
    would wait for ranks that wait for this one: the process must end, and torchrun ends the others.

    >>> with init_distributed("cpu") as world:
    ...     world.size
    1
    """
    found = hardware.device(kind)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if found.kind == "cuda" else torch.device(found.kind)
    if "RANK" not in os.environ:
        yield World(0, 1, device)
        return
    if local >= found.count and found.kind == "cuda":
        raise UserError(f"nproc_per_node={os.environ['LOCAL_WORLD_SIZE']} is more than the {found.count} GPUs of this "
                        f"machine: use {found.count}")
    if found.kind == "mps" and int(os.environ["WORLD_SIZE"]) > 1:
        raise UserError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} processes can't train on MPS, which has no all-reduce: "
                        "use nproc_per_node=1, or device='cpu'")
    if found.kind == "cuda":
        torch.cuda.set_device(device)
    else:
        share = max(1, hardware.cores() // int(os.environ["LOCAL_WORLD_SIZE"]))
        torch.set_num_threads(int(os.environ.get("TINYLIB_THREADS", share)))    # as `launch` has divided the cores
    # The optimizers import dynamo.  Imported after the group is made, it keeps the group's threads alive to the end of
    # the interpreter, where now and then one of them aborts the process (torch 2.13).
    importlib.import_module("torch._dynamo")
    on_gpu = {"backend": "cpu:gloo,cuda:nccl", "device_id": device} if found.kind == "cuda" else {"backend": "gloo"}
    dist.init_process_group(timeout=TIMEOUT, **on_gpu)
    world = World(dist.get_rank(), dist.get_world_size(), device)
    yield world
    world.all_reduce_sum(torch.zeros(1))    # a rank that leaves early must not end the run while another still writes
    dist.destroy_process_group()


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Signal handlers for a clean stop: a first SIGINT or SIGTERM makes the yielded function return True.

    A second one raises KeyboardInterrupt.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    with contextlib.suppress(ValueError):    # outside the main thread signals stay as they are
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def record_failure(error: BaseException, directory: RunDirectory) -> None:
    """Write the failure of this rank into the run directory, as far as its disk allows.

    A run that had ended well and could not be resumed stays what it was.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error.add_note("the disk is full: free some space and resume; whole checkpoints are untouched, of steps "
                       f"{directory.saved_steps() or 'none'}")
    # A killed rank's connections break a moment before the process is gone.
    deadline_s = time.monotonic() + (2.0 if size > 1 and isinstance(error, RuntimeError) else 0.0)
    while not (killed := directory.killed_ranks()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    for role, process in killed.items():
        error.add_note(f"{role} (pid {process.pid}) was killed from outside: the system does so when memory runs out")
    with contextlib.suppress(OSError):    # a full disk must not hide the error
        directory.write_error(rank, "".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):
        if rank == 0 and directory.status()["state"] not in ("finished", "stopped"):
            reason = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
            directory.write_status("failed", error=reason)
