"""Batch file for Slurm: one torchrun on each machine."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from tinylib import checks
from tinylib.config import TrainConfig
from tinylib.launch.devices import launch_lock
from tinylib.launch.start import RANK_VARIABLES, LaunchSettings, prepare, train_command
from tinylib.rundir import RunDirectory, absolute
from tinylib.shards import open_splits


def write_slurm(config: TrainConfig, file: str | os.PathLike[str], nproc_per_node: int, nnodes: int = 1, *,
                max_restarts: int = 0) -> str:
    """Write to `file` a batch file that trains `config` under `srun torchrun`, and return its text.

    The run directory is made now, with the config.json that every rank reads; `launch` names the errors.  Two minutes
    before the time is up the run is asked to stop, which saves; requeued or submitted again, it resumes.
    """
    config, settings = absolute(config), LaunchSettings(nproc_per_node, nnodes, max_restarts=max_restarts)
    checks.raise_if("launch", [settings.batch_problem(config)])
    open_splits(config.data, config.model.vocab_size)
    directory = RunDirectory(config.run_dir)
    with launch_lock(directory):
        prepare(directory)
        directory.write_config(config, settings.world_size)
    text = _batch_file(config, settings, directory)
    Path(file).write_text(text, encoding="utf-8")
    directory.write_status("stopped", detail=f"not begun yet: sbatch {file}")
    return text


def _batch_file(config: TrainConfig, settings: LaunchSettings, directory: RunDirectory) -> str:
    ask = {"job-name": directory.name, "nodes": settings.nnodes, "ntasks-per-node": 1,
           "gpus-per-node" if config.device != "cpu" else "cpus-per-task": settings.nproc_per_node,
           "output": directory.logs / "slurm-%j.log", "open-mode": "append", "signal": "TERM@120"}
    place = ['--nnodes="$SLURM_JOB_NUM_NODES"', f"--nproc-per-node={settings.nproc_per_node}", "--rdzv-backend=c10d",
             '--rdzv-id="$SLURM_JOB_ID"', '--rdzv-endpoint="$first:$port"', f"--max-restarts={settings.max_restarts}"]
    lines = ["#!/bin/bash", *(f"#SBATCH --{name}={value}" for name, value in ask.items()), "#SBATCH --requeue", "",
             "set -euo pipefail", 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
             "port=$((20000 + SLURM_JOB_ID % 10000))    # one for each job",
             *(f"export {name}={value}" for name, value in RANK_VARIABLES.items()),
             f"srun --kill-on-bad-exit=1 {shlex.join([sys.executable, '-m', 'torch.distributed.run'])} \\",
             f"    {' '.join(place)} \\", f"    {shlex.join(train_command(directory, resume=True))}"]
    return "\n".join(lines) + "\n"
