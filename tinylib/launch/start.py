"""`launch`: what can be checked first, then torchrun in a process session of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from tinylib import checks, hardware
from tinylib.config import ConfigError, TrainConfig
from tinylib.events import check_tensorboard
from tinylib.launch import devices
from tinylib.launch.devices import IfBusy
from tinylib.launch.nodes import MEET_ANEW, Spread, slurm
from tinylib.launch.run import Run, refuse_alive
from tinylib.rundir import ENDED, Process, RunDirectory, plain
from tinylib.shards import open_splits

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
                      "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN_PREFIXES = ("TORCHELASTIC_", "PET_")


def launch(config: TrainConfig, nproc_per_node: int | Literal["auto"] = "auto", *, resume: bool = False,
           replace_ended: bool = False, if_busy: IfBusy = "refuse", max_restarts: int | None = None,
           nnodes: int | str | tuple[int, int] = 1, rdzv_endpoint: str | None = None) -> Run:
    """Start `config` under torchrun in a process session of its own; returns in well under two seconds.

    "auto" means one process per GPU; without a GPU one process, which by itself already uses every core.
    `resume` goes on from the newest checkpoint; `replace_ended` first removes an earlier run of that directory, unless
    it is still running.  `if_busy` says what to do where other runs have the devices: "refuse" raises ConfigError,
    "queue" starts when they are gone, and returns at once all the same, "share" trains beside them.  On GPUs, runs get
    devices of their own as long as there are enough.  After a failure torchrun starts all processes again, from the
    newest checkpoint, up to `max_restarts` times (None: 3 times where the number of machines may change, else never).

    Several machines share the run directory: `launch` with the same arguments on each, or `join_command` of the first
    one's run on the others.  They meet at `rdzv_endpoint`, host:port, in a store that the machine of that name holds.
    `nnodes=2` waits for two machines; "1:2", or (1, 2), goes on with either number of them.

    What can be is checked first: ConfigError for a batch that doesn't divide among the processes, FileNotFoundError for
    missing shards, ValueError for shards of another vocabulary or a live run, FileExistsError for a taken folder.
    """
    config, run = _placed(config)
    there = devices.machine(config.device)
    spread = Spread.of(_processes(there, nproc_per_node), nnodes, rdzv_endpoint, max_restarts)
    _check_ways(if_busy, spread)
    spread.check_batch(config)
    open_splits(config.data, config.model.vocab_size)
    check_tensorboard(config)
    count = 1 if there[0] in ("cpu", "mps") else spread.nproc_per_node
    with devices.alone(run.directory):
        joins = _joins(run, config, spread)
        others = devices.neighbours(run.directory, itself=joins and there[0].startswith("cuda"))
        given, busy = devices.choose(there, count, others, if_busy == "share")
        if if_busy == "refuse":
            devices.refuse_busy(run.directory, count, busy)
        if not joins:
            facts = {"train": plain(config), "world_size": spread.worlds[-1], "launch": spread.facts()}
            _prepare(run, facts, resume, replace_ended)
        _start(run.directory, spread, resume, given, count)
    if spread.most > 1 and not joins:
        print(f"on each further machine: {run.join_command}")
    return run


def _placed(config: TrainConfig) -> tuple[TrainConfig, Run]:
    """The configuration with whole paths, which mean the same wherever a process begins, and its run."""
    run = Run(config.run_dir)
    return replace(config, run_dir=str(run.directory.path), data=str(Path(config.data).resolve())), run


def _processes(there: list[str], nproc_per_node: int | Literal["auto"]) -> int:
    """How many processes a machine with these devices is to run."""
    gpus = len(there) if there[0].startswith("cuda") else 0
    if nproc_per_node == "auto":
        return max(1, gpus)
    problem = checks.check_int("nproc_per_node", nproc_per_node)
    checks.raise_if("launch", [problem and f'{problem}, or "auto"'])
    if gpus and nproc_per_node > gpus:
        raise ConfigError("launch", [f"nproc_per_node={nproc_per_node} is more than this machine's GPUs: "
                                     f'use {gpus} or fewer, or device="cpu"'])
    return nproc_per_node


def _check_ways(if_busy: str, spread: Spread) -> None:
    if sys.platform == "win32":
        raise OSError("launch needs POSIX sessions and signals: on Windows use tinylib.train.train(config), or WSL")
    problem = checks.check_choice("if_busy", if_busy, get_args(IfBusy))
    if if_busy == "queue" and spread.most > 1:
        problem = ('if_busy="queue" is for one machine: of several, each could wait for the devices that another run '
                   'has only there; use "refuse" or "share"')
    checks.raise_if("launch", [problem])


def _joins(run: Run, config: TrainConfig, spread: Spread) -> bool:
    """Whether another machine has begun this very run; ConfigError if it is under way, but with other settings."""
    if spread.most == 1 or not run.directory.exists() or run.state in ENDED:
        return False
    written = run.directory.read_config()
    there, here = written["train"] | written.get("launch", {}), plain(config) | spread.facts()
    checks.raise_if("launch", [f"{name} is {there.get(name)!r} on the machine that began this run, and {here[name]!r} "
                            "here: call launch with the same on all" for name in here if there.get(name) != here[name]])
    return True


def _prepare(run: Run, facts: dict[str, Any], resume: bool = False, replace_ended: bool = False) -> None:
    """Make the run directory, with `facts` as its config.json, ready for a start; ValueError or FileExistsError."""
    directory = run.directory
    refuse_alive(directory)
    if resume:
        directory.read_config()
    elif directory.exists() and replace_ended:
        run.remove()
    elif directory.path.exists() and any(directory.path.iterdir()):
        raise FileExistsError(f"run={str(directory.path)!r} is taken: choose another run directory, or pass "
                              "resume=True to go on from its newest checkpoint, or replace_ended=True to start afresh")
    directory.create(facts)
    directory.forget_start()


def write_slurm(config: TrainConfig, file: str | os.PathLike[str], nproc_per_node: int,
                nnodes: int | str | tuple[int, int] = 1, *, max_restarts: int | None = None) -> str:
    """Write to `file` a batch file for Slurm that trains `config` under `srun torchrun`, and return its text.

    The run directory is made now, with config.json, which every process reads; `launch` names the errors.
    """
    config, run = _placed(config)
    text = slurm(config, nproc_per_node, nnodes, max_restarts)
    open_splits(config.data, config.model.vocab_size)
    with devices.alone(run.directory):
        _prepare(run, {"train": plain(config), "world_size": nproc_per_node})
    Path(file).write_text(text, encoding="utf-8")
    run.directory.write_status("stopped", detail=f"not begun yet: sbatch {file}")
    return text


def _start(directory: RunDirectory, spread: Spread, resume: bool, given: Sequence[str], count: int) -> None:
    """Start torchrun on the devices that the run was `given`, or what waits for `count` of them."""
    recorded, names = directory.processes(), itertools.chain(["agent"], map("agent{}".format, itertools.count(2)))
    role = next(name for name in names if name not in recorded or recorded[name].gone())
    command = spread.torchrun(directory, resume)
    if not given:
        command = [sys.executable, "-m", "tinylib.launch.waiting", str(directory.path), str(count), *command]
        directory.write_status("queued")
    variables = _environment(spread.nproc_per_node) | devices.environment(given)
    with (directory.logs / f"{role}.log").open("ab") as log:
        agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                 start_new_session=True, env=variables | (MEET_ANEW if spread.most > 1 else {}))
    directory.write_pid(role, replace(Process.of(agent.pid), devices=",".join(given)))
    # Whoever started a process must collect its exit, or it stays as a zombie for as long as the kernel lives.
    threading.Thread(target=agent.wait, name=f"reap {agent.pid}", daemon=True).start()


def _environment(processes: int) -> dict[str, str]:
    """This process's variables without those of a torchrun around it, and with this machine's cores shared out."""
    kept = {name: value for name, value in os.environ.items()
            if name not in TORCHRUN_VARIABLES and not name.startswith(TORCHRUN_PREFIXES)}
    return kept | {"OMP_NUM_THREADS": str(max(1, hardware.cores() // processes)), "PYTHONUNBUFFERED": "1",
                   "TINYLIB_RANK_LOGS": "1"}
