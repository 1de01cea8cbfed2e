"""Device allocation between runs: a run takes the first GPUs that are visible, and no two runs share one unasked.

A run holds the devices that its pid files record for as long as one of its processes is alive, so a killed run holds
nothing.  Launches check one at a time, under a file lock that the kernel releases with its process.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tinylib import profiles, rundir
from tinylib.checks import ConfigError
from tinylib.rundir import RunDirectory


def raise_if_busy(own: RunDirectory, devices: Sequence[str], joins: bool = False) -> None:
    """Raise ConfigError where a live run of this machine holds one of `devices`.

    Runs are looked for in this home and beside `own`.  `own` itself counts where a second torchrun `joins` it on GPUs,
    because NCCL takes one rank a GPU.
    """
    itself = joins and devices[0].startswith("cuda")
    for run in itertools.chain.from_iterable(map(rundir.runs, _folders(own))):
        recorded = run.processes().values() if run.alive() and (itself or run.path != own.path) else ()
        taken = {device for process in recorded if process.host == platform.node()
                 for device in process.devices.split(",")} & set(devices)
        if taken:
            name = str(run.path)
            raise ConfigError("launch", [
                f"run_dir={str(own.path)!r} needs {', '.join(sorted(taken))} of this machine, which the run {name!r} "
                f"holds: wait for it with attach({name!r}).wait(), end it with .stop(), show other GPUs in "
                "CUDA_VISIBLE_DEVICES, or pass share=True to train beside it, both slower"])


@contextmanager
def launch_lock(own: RunDirectory) -> Iterator[None]:
    """File lock: inside, no other launch into these folders checks devices or starts a run."""
    import fcntl

    own.path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for folder in _folders(own):
            with suppress(OSError):    # a file system without locks, or a folder that only others may write
                fcntl.flock(held.enter_context((folder / ".launching").open("w")), fcntl.LOCK_EX)
        yield


def _folders(own: RunDirectory) -> list[Path]:
    """The folders of runs, in one order for all launches: this home's and the one that `own` is in."""
    home = (profiles.home() / "runs").resolve()
    return sorted({own.path.parent, *([home] if home.is_dir() else [])})
