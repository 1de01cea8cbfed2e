"""The processes that train together: join them, add up over them, stop them together."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tinylib import hardware


@dataclass(frozen=True)
class World:
    """All processes of a run, as one of them, `rank` of `size`, sees it."""

    rank: int
    size: int
    device: torch.device

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks; each gives and gets a tensor of the same shape."""
        if self.size == 1:
            return tensor
        placed = tensor.to(self.device)
        dist.all_reduce(placed)
        return placed.to(tensor.device)


@contextlib.contextmanager
def join(kind: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, on devices of `kind`, or stand alone; leave them at the end.

    torchrun gives every process one CPU thread; here the cores are shared out among the processes of a machine.

    >>> with join("cpu") as world:
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
        raise ValueError(f"nproc_per_node={os.environ['LOCAL_WORLD_SIZE']} is more than the {found.count} GPUs of this "
                         f"machine: use {found.count}")
    if found.kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, hardware.cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    # The optimizers import dynamo.  Imported after the group is made, it keeps the group's threads alive to the end of
    # the interpreter, where now and then one of them aborts the process (torch 2.13).
    importlib.import_module("torch._dynamo")
    store, rank, size = next(dist.rendezvous("env://"))
    dist.init_process_group("nccl" if found.kind == "cuda" else "gloo", store=_unused(store, rank, size), rank=rank,
                            world_size=size)
    try:
        yield World(rank, size, device)
        dist.barrier()    # a rank that leaves early must not end the run while another still writes
    finally:
        dist.destroy_process_group()


def _unused(store: dist.Store, rank: int, size: int) -> dist.Store:
    """A part of `store` in which the ranks of this start meet nobody of an earlier one.

    When torchrun starts its ranks again it gives them the same store, with the addresses of the dead in it (torch
    2.13), and no number to tell their start by: on several machines TORCHELASTIC_RESTART_COUNT differs.  So each rank
    calls with a name that nobody had before, until rank 0 answers that very name with its own.
    """
    name = uuid.uuid4().hex
    silent = set(range(1, size)) if rank == 0 else set()
    while silent:
        for other in list(silent):
            store.set(f"answer {other}", store.get(f"call {other}").decode() + name)
            silent -= {other} if store.check([f"heard {other} {name}"]) else set()
        time.sleep(0.01)
    if rank > 0:
        store.set(f"call {rank}", name)
        while not (answer := store.get(f"answer {rank}").decode()).startswith(name):
            time.sleep(0.01)
        name = answer.removeprefix(name)
        store.set(f"heard {rank} {name}", "")
    return dist.PrefixStore(name, store)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """While inside, a first SIGINT or SIGTERM only makes the yielded function return True; a second one interrupts."""
    asked: list[int] = []
    before: dict[int, Any] = {}

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    with contextlib.suppress(ValueError):    # outside the main thread signals stay as they are
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
