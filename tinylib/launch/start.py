"""`launch`: what can be checked first, then torchrun in a process session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tinylib import hardware, rules
from tinylib.config import ConfigError, TrainConfig
from tinylib.launch.run import Run, refuse_alive
from tinylib.rundir import Process, RunDirectory, plain
from tinylib.shards import open_splits
from tinylib.sizing import plan_batch

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
                      "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN_PREFIXES = ("TORCHELASTIC_", "PET_")


def launch(config: TrainConfig, nproc_per_node: int | Literal["auto"] = "auto", *, resume: bool = False,
           replace_ended: bool = False) -> Run:
    """Start `config` under torchrun in a process session of its own; returns in well under two seconds.

    "auto" means one process per GPU; without a GPU one process, which by itself already uses every core.
    `resume` goes on from the newest checkpoint; `replace_ended` first removes an earlier run of that directory, unless
    it is still running.  What can be checked is checked here, before anything is written: ConfigError for a batch
    that doesn't divide among the processes, FileNotFoundError for missing shards, ValueError for shards of another
    vocabulary or a run that is still alive, FileExistsError for a run directory that is taken.
    """
    if sys.platform == "win32":
        raise OSError("launch needs POSIX sessions and signals: on Windows use tinylib.train.train(config), or WSL")
    path = Path(config.run).resolve()
    config = replace(config, run=str(path), data=str(Path(config.data).resolve()))
    processes = _processes(config, nproc_per_node)
    plan_batch(config.total_batch_size, config.device_batch_size, config.model.seq_len, processes)
    open_splits(config.data, config.model.vocab_size)
    run = Run(path)
    _check_directory(run, resume, replace_ended)
    run.directory.create({"train": plain(config), "world_size": processes})
    run.directory.forget_start()
    _start(run.directory, processes, resume)
    return run


def _processes(config: TrainConfig, nproc_per_node: int | Literal["auto"]) -> int:
    gpus = 0
    if config.device in ("auto", "cuda"):
        import torch

        gpus = torch.cuda.device_count()    # counts without taking hold of a device in this process
    if nproc_per_node == "auto":
        return max(1, gpus)
    problem = rules.whole("nproc_per_node", nproc_per_node)
    rules.refuse("launch", [problem and f'{problem}, or "auto"'])
    if gpus and nproc_per_node > gpus:
        raise ConfigError("launch", [f"nproc_per_node={nproc_per_node} is more than this machine's GPUs: "
                                     f'use {gpus} or fewer, or device="cpu"'])
    return nproc_per_node


def _check_directory(run: Run, resume: bool, replace_ended: bool) -> None:
    directory = run.directory
    refuse_alive(directory)
    if resume:
        directory.read_config()
    elif directory.exists() and replace_ended:
        run.remove()
    elif directory.path.exists() and any(directory.path.iterdir()):
        raise FileExistsError(f"run={str(directory.path)!r} is taken: choose another run directory, or pass "
                              "resume=True to go on from its newest checkpoint, or replace_ended=True to start afresh")


def _start(directory: RunDirectory, processes: int, resume: bool) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
               "--nproc-per-node", str(processes), "--max-restarts", "0", "--log-dir", str(directory.logs / "torchrun"),
               "-m", "tinylib", "train", "--config", str(directory.config), *(["--resume"] if resume else [])]
    with directory.agent_log.open("ab") as log:
        agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                 start_new_session=True, env=_environment(processes))
    directory.write_pid("agent", Process.of(agent.pid))
    # Whoever started a process must collect its exit, or it stays as a zombie for as long as the kernel lives.
    threading.Thread(target=agent.wait, name=f"reap {agent.pid}", daemon=True).start()


def _environment(processes: int) -> dict[str, str]:
    """This process's variables without those of a torchrun around it, and with this machine's cores shared out."""
    kept = {name: value for name, value in os.environ.items()
            if name not in TORCHRUN_VARIABLES and not name.startswith(TORCHRUN_PREFIXES)}
    return kept | {"OMP_NUM_THREADS": str(max(1, hardware.cores() // processes)), "PYTHONUNBUFFERED": "1",
                   "TINYLIB_RANK_LOGS": "1"}
