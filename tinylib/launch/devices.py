"""Device allocation between runs: a run takes the first GPUs that are visible, and no two runs share one unasked.

A run holds the devices that its pid files record for as long as one of its processes is alive, so a killed run holds
nothing.  Launches check one at a time, under a file lock that the kernel releases with its process.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tinylib import profiles, rundir
from tinylib.checks import ConfigError
from tinylib.config import DeviceKind
from tinylib.rundir import RunDirectory


def visible_devices(kind: DeviceKind = "auto") -> list[str]:
    """Devices of this machine for a run on `kind`: "cuda:N" for each GPU in CUDA_VISIBLE_DEVICES, or "mps", or "cpu".

    Raises ConfigError where the machine has none of that kind.

    >>> visible_devices("cpu")
    ['cpu']
    """
    if kind == "cpu":
        return ["cpu"]
    import torch

    count = torch.cuda.device_count() if kind != "mps" else 0    # counts without initializing CUDA in this process
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = [name.strip() for name in visible if name.strip()] or [str(number) for number in range(count)]
        return [f"cuda:{name}" for name in names[:count]]
    if kind != "cuda" and torch.backends.mps.is_available():
        return ["mps"]
    if kind != "auto":
        raise ConfigError("launch", [f'device={kind!r} is not on this machine: use "auto" or "cpu"'])
    return ["cpu"]


def environment(devices: Sequence[str]) -> dict[str, str]:
    """The variables by which a process sees these devices and no others of their kind.

    >>> environment(["cuda:2", "cuda:3"]), environment(["cpu"])
    ({'CUDA_VISIBLE_DEVICES': '2,3'}, {})
    """
    gpus = [device.removeprefix("cuda:") for device in devices if device.startswith("cuda:")]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}


def raise_if_busy(own: RunDirectory, devices: Sequence[str], joins: bool = False) -> None:
    """Raise ConfigError where a live run of this machine holds one of `devices`.

    Runs are looked for in this home and beside `own`.  `own` itself counts where a second torchrun `joins` it on GPUs,
    because NCCL takes one rank a GPU.
    """
    found = {run.path: run for folder in _folders(own) for run in rundir.runs(folder)}
    itself = joins and devices[0].startswith("cuda")
    for path, run in found.items():
        taken = set(devices) & _held(run) if path != own.path or itself else set()
        if taken:
            raise ConfigError("launch", [
                f"run_dir={str(own.path)!r} needs {', '.join(sorted(taken))} of this machine, which the run "
                f"{str(path)!r} holds: wait for it with attach({str(path)!r}).wait(), end it with .stop(), show other "
                "GPUs in CUDA_VISIBLE_DEVICES, or pass share=True to train beside it, both slower"])


def _held(run: RunDirectory) -> set[str]:
    """The devices of this machine that a run holds now."""
    here = [process for process in run.processes().values() if process.host == platform.node()] if run.alive() else []
    return {device for process in here for device in process.devices.split(",")} - {""}


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
