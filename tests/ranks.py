"""Training for tests: one process or several under torchrun, a signal in mid-step, and what a run left on disk.

As a script this file is what every rank runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tinylib import checkpoint, rundir
from tinylib.config import TrainConfig, from_dict
from tinylib.optim import Optimizer
from tinylib.rundir import Header, RunDirectory
from tinylib.rundir.records import to_line
from tinylib.train import train

TIMES = ("dt_s", "data_s", "tokens_per_s", "mfu", "time_s", "seconds", "peak_memory_bytes")
"""What no two runs have in common."""


@dataclass(frozen=True)
class Job:
    """One call of `train`; the last rank gets a SIGTERM while it updates the weights in step `signal_at`."""

    config: TrainConfig
    resume: bool = False
    signal_at: int | None = None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(processes: int, *jobs: Job | TrainConfig, timeout_s: float = 250) -> subprocess.CompletedProcess[str]:
    """Do `jobs` one after the other in the same processes under torchrun, which also look for threads left behind."""
    done = [job if isinstance(job, Job) else Job(job) for job in jobs]
    text = json.dumps([[rundir.plain(job.config), job.resume, job.signal_at] for job in done])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
               __file__, text]
    strict = os.environ | {"PYTHONWARNINGS": "error::FutureWarning"}    # pytest's filters don't reach the ranks
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=strict) as agent:
        try:
            said = agent.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            agent.terminate()    # it ends its ranks, which a SIGKILL would leave behind
            raise
    return subprocess.CompletedProcess(command, agent.returncode, *said)


@contextlib.contextmanager
def signalled(step: int | None) -> Iterator[None]:
    """While inside, this process gets a SIGTERM in the middle of `step` (None: it doesn't)."""
    update = Optimizer.step

    def update_and_signal(optimizer: Optimizer, number: int) -> float:
        if number + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(optimizer, number)

    signal.set_wakeup_fd(-1)    # or the event loop of an earlier test hears of the signal, and ends a later one
    Optimizer.step = update_and_signal  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.step = update  # type: ignore[method-assign]


def cut(config: TrainConfig, step: int, run: Path) -> TrainConfig:
    """A copy, at `run`, of a finished run whose process was killed before it could save anything after `step`."""
    whole, part = RunDirectory(config.run_dir), RunDirectory(run)
    shutil.copytree(whole.path, part.path)
    for later in part.saved_steps():
        if later > step:
            shutil.rmtree(part.checkpoint_path(later))
    return replace(config, run_dir=str(run))


def losses(run: str) -> list[float]:
    """The training loss of every step."""
    return RunDirectory(run).metrics()["loss"].tolist()


def story(run: str) -> list[dict[str, Any]]:
    """Every record of a run but headers, and without times."""
    return [{name: value for name, value in json.loads(to_line(record)).items() if name not in TIMES}
            for record in RunDirectory(run).records() if not isinstance(record, Header)]


def ending(run: str) -> dict[str, Any]:
    """The newest checkpoint: a hash of each file, and its train state but for where and how often the run saved."""
    folder = RunDirectory(run).checkpoint()
    state = checkpoint.read_train_state(folder)
    del state["train"]["run_dir"], state["train"]["save_every"]
    files = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
             for file in folder.rglob("*") if file.is_file() and file.name != checkpoint.TRAIN_STATE}
    return {**files, checkpoint.TRAIN_STATE: state}


def main() -> None:
    """Do the jobs of the command line as one rank."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    init = dist.init_process_group
    for number, (config, resume, signal_at) in enumerate(json.loads(sys.argv[1])):
        # Without a prefix the second group would meet at the addresses that the first one left in the store.
        job = dist.PrefixStore(f"job {number}", store)
        dist.init_process_group = partial(init, store=job, rank=rank, world_size=world_size)
        with signalled(signal_at if rank == world_size - 1 else None):
            train(from_dict(TrainConfig, config), resume=resume)
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if "gloo" in name], names


if __name__ == "__main__":
    main()
