"""Who has which device of this machine, so that two runs don't fight for one unless they were told to share it.

A run has the devices that its agent was given for as long as a process of it is alive: nothing has to be handed back,
and a run that was killed holds nothing.  Launches decide one at a time, under a lock that the kernel releases.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinylib import profiles
from tinylib.config import ConfigError, DeviceKind
from tinylib.launch.run import Run, runs
from tinylib.rundir import RunDirectory

IfBusy = Literal["refuse", "queue", "share"]


@dataclass(frozen=True)
class Neighbour:
    """Another run that is alive on this machine, and what it has, or waits for, of it."""

    run: Run
    devices: frozenset[str]
    queued: bool = False
    since_s: float = 0.0


def machine(kind: DeviceKind = "auto") -> list[str]:
    """The devices of this machine that a run on `kind` may take: one name a GPU that is visible, or "mps", or "cpu".

    Raises ConfigError where the machine has none of that kind.

    >>> machine("cpu")
    ['cpu']
    """
    if kind == "cpu":
        return ["cpu"]
    import torch

    count = torch.cuda.device_count() if kind != "mps" else 0    # takes hold of no device in this process
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = [name.strip() for name in visible if name.strip()] or [str(number) for number in range(count)]
        return [f"cuda:{name}" for name in names[:count]]
    if kind != "cuda" and torch.backends.mps.is_available():
        return ["mps"]
    if kind != "auto":
        raise ConfigError("launch", [f'device={kind!r} is not on this machine: use "auto" or "cpu"'])
    return ["cpu"]


def neighbours(own: RunDirectory, itself: bool = False) -> list[Neighbour]:
    """The other live runs of this machine, of those in this home and beside `own`; `itself` counts `own` too."""
    found = {run.directory.path: run for folder in _folders(own)
             for run in runs(folder, deep=folder != own.path.parent)}
    return [_neighbour(run) for path, run in found.items() if run.directory.alive() and (itself or path != own.path)]


def _neighbour(run: Run) -> Neighbour:
    directory = run.directory
    here = [process for process in directory.processes().values() if process.host == platform.node()]
    given = frozenset(device for process in here for device in process.devices.split(",") if device)
    if not given:    # it waits for devices, or was begun by hand
        written = directory.read_config()
        kind, queued = machine(written["train"].get("device", "auto")), run.state == "queued"
        used = kind if queued else kind[:written.get("world_size")]
        return Neighbour(run, frozenset(used), queued, min((process.started_s for process in here), default=0.0))
    return Neighbour(run, given)


def choose(devices: Sequence[str], count: int, others: Sequence[Neighbour], share: bool = False,
           since_s: float = float("inf")) -> tuple[list[str], list[Neighbour]]:
    """`count` of the `devices` that none of the `others` has, or else those who are in the way.

    A CPU is one device, however many processes use it.  Who waits for devices is in the way of those who came after
    `since_s`; `share` takes free devices first, then any.

    >>> choose(["cuda:0", "cuda:1"], 1, [Neighbour(Run("other"), frozenset(["cuda:0"]))])
    (['cuda:1'], [])
    """
    in_the_way = [other for other in others if other.devices & set(devices)
                  and not (other.queued and other.since_s >= since_s)]
    taken = {device for other in in_the_way for device in other.devices}
    free = [device for device in devices if device not in taken]
    if share:
        return (free + [device for device in devices if device in taken])[:count], []
    return (free[:count], []) if len(free) >= count else ([], in_the_way)


def refuse_busy(own: RunDirectory, count: int, busy: Sequence[Neighbour]) -> None:
    """Raise ConfigError, with the ways out, if other runs are in the way."""
    if not busy:
        return
    other = busy[0].run
    what = "a CPU" if "cpu" in busy[0].devices else f"{count} GPU{'s' * (count > 1)}"
    names = ", ".join(f"{neighbour.run.directory.name} ({neighbour.run.state})" for neighbour in busy)
    raise ConfigError("launch", [
        f"run={str(own.path)!r} needs {what} of this machine that other runs have: {names}. Wait for it with "
        f"attach({str(other.directory.path)!r}).wait(), end it with .stop(), or pass if_busy=\"queue\" to start when "
        'it is gone, or if_busy="share" to train beside it, both slower'])


def environment(devices: Sequence[str]) -> dict[str, str]:
    """The variables by which a process sees these devices and no others of their kind.

    >>> environment(["cuda:2", "cuda:3"]), environment(["cpu"])
    ({'CUDA_VISIBLE_DEVICES': '2,3'}, {})
    """
    gpus = [device.removeprefix("cuda:") for device in devices if device.startswith("cuda:")]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}


@contextmanager
def alone(own: RunDirectory) -> Iterator[None]:
    """While inside, no other launch into these folders looks at what is free, or starts anything."""
    import fcntl

    own.path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for folder in _folders(own):
            with suppress(OSError):    # no locks, or not our folder: two launches in one moment may miss each other
                fcntl.flock(held.enter_context((folder / ".launching").open("w")), fcntl.LOCK_EX)
        yield


def _folders(own: RunDirectory) -> list[Path]:
    """Where runs are looked for, always in the same order: the runs of this home, and the folder that `own` is in."""
    home = (profiles.home() / "runs").resolve()
    return sorted({own.path.parent, *([home] if home.is_dir() else [])})
