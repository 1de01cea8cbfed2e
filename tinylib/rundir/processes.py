"""Process identity: pid and start time, because the system reuses pids."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Process:
    """A process, identified by pid and start time, because a pid alone is reused."""

    pid: int
    started_s: float
    """Start of the process in seconds since the epoch, as the system reports it."""
    host: str = field(default_factory=platform.node)
    devices: str = ""
    """Devices that it uses, as "cpu" or "cuda:0,cuda:1"; empty where unknown."""

    @classmethod
    def current(cls, devices: str = "") -> Process:
        """The calling process."""
        return cls.of(os.getpid(), devices)

    @classmethod
    def of(cls, pid: int, devices: str = "") -> Process:
        """The process that has `pid` now."""
        import psutil

        return cls(pid, psutil.Process(pid).create_time(), devices=devices)

    def alive(self) -> bool:
        """Whether this process still runs on this machine; a zombie does not count."""
        import psutil

        try:
            found = psutil.Process(self.pid)
            # Linux derives start times from a clock that is adjusted now and then; pids aren't reused within seconds.
            same = self.host == platform.node() and abs(found.create_time() - self.started_s) < 5.0
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def gone(self) -> bool:
        """Whether it ran on this machine and has ended."""
        return self.host == platform.node() and not self.alive()
