"""A process of a run, told apart from every other one there was."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Process:
    """A process that can't be mistaken for another: a pid comes again, a pid with its start time doesn't."""

    pid: int
    started_s: float
    """Start of the process in seconds since the epoch, as the system tells it."""
    host: str = field(default_factory=platform.node)
    devices: str = ""
    """What it may use of its machine, as "cpu" or "cuda:0,cuda:1"; empty where nobody said."""

    @classmethod
    def current(cls) -> Process:
        """The calling process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has `pid` now."""
        import psutil

        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        """Whether this very process still runs here; a zombie doesn't, and another machine's can't be seen."""
        import psutil

        try:
            found = psutil.Process(self.pid)
            # Linux tells starts by its clock, which is corrected now and then; no pid comes again within seconds.
            same = self.host == platform.node() and abs(found.create_time() - self.started_s) < 5.0
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def gone(self) -> bool:
        """Whether it has ended, as far as this machine can tell."""
        return self.host == platform.node() and not self.alive()
