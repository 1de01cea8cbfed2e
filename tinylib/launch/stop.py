"""Graceful stop of a run: SIGTERM to its ranks, SIGKILL to what is left of its process tree."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil

from tinylib.rundir import Header, Process, RunDirectory, Step
from tinylib.rundir.processes import started_s


def stop(run: RunDirectory, timeout_s: float) -> None:
    """Let every rank on this machine save and exit; kill what is left after `timeout_s` and one micro-batch."""
    ranks = [process for role, process in run.alive().items() if not role.startswith("agent")]
    family = _family(run)
    for process in ranks:
        _signal(process, signal.SIGTERM)
    if ranks:    # torchrun ends by itself once all its ranks have
        step, header = run.last(Step), run.last(Header)
        micro_batch_s = step.dt_s / header.accumulation if step and header else 0.0
        wait_until(lambda: not run.alive(), timeout_s + micro_batch_s)
    for role, process in run.alive().items():
        if role.startswith("agent"):    # suspended, it starts no further rank while its descendants are listed
            _signal(process, signal.SIGSTOP)
    family += _family(run)
    for process in family:
        _signal(process, signal.SIGKILL)
    wait_until(lambda: not any(process.alive() for process in family), 10.0)
    if run.status()["state"] == "lost":
        run.write_status("stopped", detail="ended before it could save: resume goes on from the newest checkpoint, if "
                         "there is one")


def wait_until(condition: Callable[[], Any], timeout_s: float) -> bool:
    """Poll until `condition` is true; False after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _family(run: RunDirectory) -> list[Process]:
    """The live processes of a run and all their descendants."""
    found: list[Process] = []
    for process in run.alive().values():
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            found += [Process(member.pid, started_s(member)) for member in tree]
    return found


def _signal(process: Process, number: signal.Signals) -> None:
    """Send a signal to this very process, if it is still there."""
    if process.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
