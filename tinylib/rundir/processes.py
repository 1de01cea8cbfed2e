"""Process identity: pid and start time, because the system reuses pids."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

import psutil


@dataclass(frozen=True)
class Process:
    """A process of some machine."""

    pid: int
    started_s: float
    """Start of the process in seconds since the system's: the clock may be set, as after a machine's pause."""
    host: str = field(default_factory=platform.node)
    devices: str = ""
    """Devices that it uses, as "cpu" or "cuda:0,cuda:1"; empty where unknown."""

    @classmethod
    def of(cls, pid: int | None = None, devices: str = "") -> Process:
        """The process that has `pid` now, by default the calling one."""
        found = psutil.Process(pid)
        return cls(found.pid, started_s(found), devices=devices)

    def alive(self) -> bool:
        """Whether this process still runs on this machine; a zombie does not count."""
        try:
            found = psutil.Process(self.pid)
            # Pids aren't reused within seconds, and systems round their own start.
            same = self.host == platform.node() and abs(started_s(found) - self.started_s) < 5.0
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def gone(self) -> bool:
        """Whether it ran on this machine and has ended."""
        return self.host == platform.node() and not self.alive()


def started_s(process: psutil.Process) -> float:
    """Start of a process in seconds since the system's; both are reported by a clock that may have been set since."""
    return process.create_time() - psutil.boot_time()
