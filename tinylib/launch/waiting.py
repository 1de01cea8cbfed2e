"""The program of a queued run's process until its turn: wait for devices, take them, and become torchrun.

It stays the same process, so whoever watches or stops the run needs not know; ended while it waits, it holds nothing.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

from tinylib.launch.devices import alone, choose, environment, machine, neighbours
from tinylib.rundir import Process, RunDirectory


def main(arguments: list[str]) -> None:
    """Wait until the run in the directory `arguments[0]` gets `arguments[1]` devices, then become the rest of them."""
    directory, count, command = RunDirectory(arguments[0]), int(arguments[1]), arguments[2:]
    while not (devices := take(directory, count)):
        time.sleep(0.3)
    os.execve(command[0], command, {**os.environ, **environment(devices)})


def take(directory: RunDirectory, count: int) -> list[str]:
    """The devices that this run has from now on; none while others, or earlier ones in the queue, need them."""
    own, kind = Process.current(), directory.read_config()["train"]["device"]
    with alone(directory):
        devices, _ = choose(machine(kind), count, neighbours(directory), since_s=own.started_s)
        if devices:
            directory.write_pid("agent", replace(own, devices=",".join(devices)))
            directory.write_status("starting")
    return devices


if __name__ == "__main__":
    main(sys.argv[1:])
