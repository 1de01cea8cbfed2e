"""How a run is spread over processes and machines: torchrun's command line for it, and a batch file for Slurm."""

from __future__ import annotations

import math
import re
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinylib import checks
from tinylib.checks import ConfigError
from tinylib.config import TrainConfig
from tinylib.rundir import RunDirectory
from tinylib.sizing import plan_batch

LATECOMERS_S = 10
"""How long torchrun waits for further machines once it has the fewest it may begin with."""
MEET_ANEW = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Has the machines tell each other anew, whenever they meet, where their ranks meet: by itself torchrun (2.13) says it
once, and a machine that comes back waits for it in vain until all fail."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Spread:
    """Processes on a machine, machines, and how often torchrun may start the processes again.

    >>> Spread.of(8, "1:4", "node1:29400").worlds
    [8, 16, 24, 32]
    """

    nproc_per_node: int
    least: int = 1
    """Fewest machines that the run may go on with."""
    most: int = 1
    rdzv_endpoint: str | None = None
    """Where the machines meet: host and port of the one that all others find the run through."""
    max_restarts: int = 0

    @classmethod
    def of(cls, nproc_per_node: int, nnodes: int | str | tuple[int, int] = 1, rdzv_endpoint: str | None = None,
           max_restarts: int | None = None) -> Spread:
        """What these parameters of `launch` ask for; raises ConfigError with all that is wrong with them."""
        least, most = _machines(nnodes)
        if max_restarts is None:
            max_restarts = 3 if least < most else 0
        problems = [checks.check_int("nproc_per_node", nproc_per_node), checks.check_int("max_restarts", max_restarts, 0)]
        if least < most and max_restarts == 0:
            problems += [f"max_restarts=0 ends the run with the first machine that goes, so nnodes={least}:{most} "
                         "would mean nothing: use 1 or more, or None"]
        found = re.fullmatch(r"(\[[0-9a-f:]+\]|[^\s:]+):(\d+)", rdzv_endpoint or "")
        if most > 1 and not (found and 0 < int(found[2]) < 65536):
            problems += [f"rdzv_endpoint={rdzv_endpoint!r} is not where {most} machines can meet: use host:port, a "
                         "host that all of them reach and a free port there, such as node1:29400"]
        if most == 1 and rdzv_endpoint is not None:
            problems += [f"rdzv_endpoint={rdzv_endpoint!r} is for several machines: leave it out, or set nnodes"]
        checks.raise_if("launch", problems)
        return cls(nproc_per_node, least, most, rdzv_endpoint, max_restarts)

    @property
    def worlds(self) -> list[int]:
        """Every number of processes that the run may have."""
        return [self.nproc_per_node * machines for machines in range(self.least, self.most + 1)]

    @property
    def restarts(self) -> bool:
        """Whether torchrun may start the processes again, so that what they say last is not the last word."""
        return self.max_restarts > 0

    def check_batch(self, config: TrainConfig) -> None:
        """Raise ConfigError unless the batch divides among every number of processes that the run may have."""
        sizes = {"device_batch_size": config.device_batch_size, "seq_len": config.model.seq_len}
        if len(self.worlds) == 1:
            plan_batch(config.total_batch_size, **sizes, world_size=self.worlds[0])
            return
        unit = math.prod(sizes.values()) * math.lcm(*self.worlds)
        total = config.total_batch_size
        checks.raise_if("launch", [f"total_batch_size={total} doesn't divide among each of {checks.join_or(self.worlds)} "
                                f"processes, as nnodes={self.least}:{self.most} may make it: use a multiple of "
                                f"{unit}, such as {checks.join_or(checks.nearest_multiples(total, unit))}"]
                     if total % unit else [])

    def torchrun(self, directory: RunDirectory, resume: bool) -> list[str]:
        """The command that runs one machine's part of the run in `directory`."""
        where = ["--standalone", "--local-addr", "127.0.0.1"]
        if self.most > 1:
            where = self._rendezvous(f"{self.least}:{self.most}", directory.name, str(self.rdzv_endpoint))
        return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(self.nproc_per_node),
                "--max-restarts", str(self.max_restarts), "--log-dir", str(directory.logs / "torchrun"),
                *train_arguments(directory, resume or self.most > 1)]

    def _rendezvous(self, machines: str, name: str, endpoint: str) -> list[str]:
        # On one machine with itself, its own name may lead nowhere.
        local = ["--local-addr", "127.0.0.1"] if endpoint.rpartition(":")[0] in LOOPBACK else []
        return ["--nnodes", machines, "--rdzv-backend", "c10d", "--rdzv-id", name, "--rdzv-endpoint", endpoint,
                "--rdzv-conf", f"last_call_timeout={LATECOMERS_S}", *local]

    def facts(self) -> dict[str, Any]:
        """This as it stands in the run's config.json."""
        return asdict(self)


def train_arguments(directory: RunDirectory, resume: bool) -> list[str]:
    """What every rank runs.  Where machines come and go, all starts resume: the first one from the beginning."""
    return ["-m", "tinylib", "train", "--config", str(directory.config), *(["--resume"] if resume else [])]


def join_command(spread: Spread, directory: RunDirectory) -> str:
    """The command by which each further machine joins the run, in any shell there; the run directory is shared."""
    variables = {"TINYLIB_RANK_LOGS": "1", **MEET_ANEW}
    return shlex.join(["env", *map("=".join, variables.items()), *spread.torchrun(directory, resume=True)])


def _machines(nnodes: Any) -> tuple[int, int]:
    """The fewest and the most machines: 2, "1:2" and (1, 2) are understood."""
    pair = nnodes
    if isinstance(nnodes, str) and re.fullmatch(r"\d+(:\d+)?", nnodes):
        pair = tuple(int(number) for number in nnodes.split(":"))
    pair = (pair,) if checks.is_int(pair) else pair
    legal = isinstance(pair, tuple) and len(pair) in (1, 2) and all(map(checks.is_int, pair))
    if not legal or not 1 <= pair[0] <= pair[-1]:
        raise ConfigError("launch", [f"nnodes={nnodes!r} is not a number of machines: use a whole number of at least "
                                     '1, or the fewest and the most, such as "1:2"'])
    return int(pair[0]), int(pair[-1])


def slurm(config: TrainConfig, nproc_per_node: int, nnodes: int | str | tuple[int, int] = 1,
          max_restarts: int | None = None) -> str:
    """A batch file for Slurm that trains `config` with one torchrun on each machine, as text; submit it with sbatch.

    The run directory, with its config.json, must be written and shared.  Two minutes before the time is up the run is
    asked to stop, which saves; submitted again, or requeued by Slurm, it goes on from there.
    """
    spread = Spread.of(nproc_per_node, nnodes, "host:29400" if _machines(nnodes)[1] > 1 else None, max_restarts)
    spread.check_batch(config)
    directory = RunDirectory(Path(config.run_dir).resolve())
    machines = str(spread.most) if spread.least == spread.most else f"{spread.least}-{spread.most}"
    ask = {"job-name": directory.name, "nodes": machines, "ntasks-per-node": 1,
           **({"gpus-per-node": nproc_per_node} if config.device != "cpu" else {"cpus-per-task": nproc_per_node}),
           "output": directory.logs / "slurm-%j.log", "open-mode": "append", "signal": "TERM@120"}
    command = [sys.executable, "-m", "torch.distributed.run"]
    place = ['--nnodes="$SLURM_JOB_NUM_NODES"', f"--nproc-per-node={nproc_per_node}", "--rdzv-backend=c10d",
             '--rdzv-id="$SLURM_JOB_ID"', '--rdzv-endpoint="$first:$port"', f"--max-restarts={spread.max_restarts}"]
    lines = ["#!/bin/bash", *(f"#SBATCH --{name}={value}" for name, value in ask.items()), "#SBATCH --requeue", "",
             "set -euo pipefail", 'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
             "port=$((20000 + SLURM_JOB_ID % 10000))    # a port of its own for each job", "export TINYLIB_RANK_LOGS=1",
             *(f"export {name}={value}" for name, value in MEET_ANEW.items()),
             f"srun --kill-on-bad-exit=1 {shlex.join(command)} \\", f"    {' '.join(place)} \\",
             f"    {shlex.join(train_arguments(directory, resume=True))}"]
    return "\n".join(lines) + "\n"
