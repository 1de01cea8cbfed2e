"""The torchrun command of a run, its environment, and its start as a detached process."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinylib import checks, hardware
from tinylib.config import TrainConfig, batch_problem
from tinylib.rundir import ENDED, Process, RunDirectory

RANK_VARIABLES = {
    "TINYLIB_LAUNCHED": "1",    # ranks write their own logs, and config.json is written already
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}    # rank 0 hosts a new store at each start; torchrun's own can't restart
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
                      "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class LaunchSettings:
    """Processes on a machine, machines, and how often torchrun may restart; the `launch` entry of config.json.

    >>> LaunchSettings(nproc_per_node=8, nnodes=2, rdzv_endpoint="node1:29400").world_size
    16
    """

    nproc_per_node: int
    nnodes: int = 1
    rdzv_endpoint: str | None = None
    """Host and port at which the machines meet; None on one machine."""
    max_restarts: int = 0
    """Number of times torchrun restarts all ranks after a failure, from the newest checkpoint."""
    threads: int | None = None
    """Threads of a process; None takes OMP_NUM_THREADS, else the process's share of the cores."""

    def __post_init__(self) -> None:
        least = {"nproc_per_node": 1, "nnodes": 1, "max_restarts": 0} | ({} if self.threads is None else {"threads": 1})
        checks.raise_if("launch", [checks.check_int(name, getattr(self, name), low) for name, low in least.items()])
        for name in least:
            object.__setattr__(self, name, int(getattr(self, name)))    # numpy's integers are not for JSON

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.nproc_per_node * self.nnodes

    @property
    def on_this_machine(self) -> bool:
        """Whether all processes are here: there is one machine, or several only in a rehearsal over the loopback."""
        return self.nnodes == 1 or str(self.rdzv_endpoint).startswith(("localhost:", "127.0.0.1:"))

    def batch_problem(self, config: TrainConfig) -> str | None:
        """The problem with a batch that doesn't split into whole micro-batches on every process, else None."""
        return batch_problem(config.total_batch_size, config.device_batch_size, config.model.seq_len, self.world_size)

    def problems(self, config: TrainConfig, visible: Sequence[str]) -> list[str | None]:
        """Problems with the batch, with more processes than `visible` GPUs, and with the rendezvous endpoint."""
        found, endpoint = [self.batch_problem(config)], self.rdzv_endpoint
        if visible[0].startswith("cuda") and self.nproc_per_node > len(visible):    # a CPU takes any number
            found.append(f"nproc_per_node={self.nproc_per_node} is more than the GPUs that are visible: use "
                         f'{len(visible)} or fewer, or device="cpu"')
        if self.nnodes == 1 and endpoint:
            found.append(f"rdzv_endpoint={endpoint!r} is for several machines: leave it out, or set nnodes")
        address = re.fullmatch(r"(\[[0-9a-f:]+\]|[^\s:]+):(\d+)", endpoint or "")
        if self.nnodes > 1 and not (address and 0 < int(address[2]) < 65536):
            found.append(f"rdzv_endpoint={endpoint!r} is not an address for {self.nnodes} machines to meet at: use "
                         "host:port, a host that all of them reach and a free port there, such as node1:29400")
        return found


def raise_if_alive(directory: RunDirectory) -> None:
    """Raise UserError while a process of the run is alive here or, as far as is known, on another machine."""
    ended = directory.status()["state"] in ENDED
    if alive := directory.alive() or ({} if ended else directory.remote_processes()):
        pids = ", ".join(f"{role} {process.pid} on {process.host}" for role, process in alive.items())
        name = str(directory.path)
        raise checks.UserError(f"run_dir={name!r} still runs ({pids}): follow it with attach({name!r}), "
                               f"end it with attach({name!r}).stop(), or choose another run directory")


def prepare(directory: RunDirectory, resume: bool = False, replace_ended: bool = False) -> None:
    """Check that a run may start in `directory`, and remove what an earlier start left."""
    raise_if_alive(directory)
    if resume:
        directory.read_config()
    elif directory.exists() and replace_ended:
        directory.remove_files()
    elif directory.path.exists() and any(directory.path.iterdir()):
        raise FileExistsError(f"run_dir={str(directory.path)!r} is taken: choose another run directory, or pass "
                              "resume=True to go on from its newest checkpoint, or replace_ended=True to start afresh")
    directory.create()
    directory.remove_stale()
    for file in (directory.status_file, *directory.pids.glob("*.json")):
        file.unlink(missing_ok=True)


def torchrun(settings: LaunchSettings, directory: RunDirectory, resume: bool) -> list[str]:
    """The command that starts one machine's ranks.

    On several machines every start resumes, the first one from step 0, because all of them run the same command.
    """
    where = ["--standalone"]
    if settings.nnodes > 1:
        where = ["--nnodes", str(settings.nnodes), "--rdzv-backend", "c10d", "--rdzv-id", directory.name,
                 "--rdzv-endpoint", str(settings.rdzv_endpoint)]
    if settings.on_this_machine:
        where += ["--local-addr", "127.0.0.1"]    # this machine's own name may not resolve
    return [sys.executable, "-m", "torch.distributed.run", *where, "--nproc-per-node", str(settings.nproc_per_node),
            "--max-restarts", str(settings.max_restarts), "--log-dir", str(directory.logs / "torchrun"),
            *train_command(directory, resume or settings.nnodes > 1)]


def start(settings: LaunchSettings, directory: RunDirectory, resume: bool, given: Sequence[str]) -> None:
    """Start torchrun detached, on the devices `given`, and record its process with them."""
    taken = {role for role, process in directory.processes().items() if not process.gone()}
    role = next(name for name in itertools.chain(["agent"], map("agent{}".format, itertools.count(2)))
                if name not in taken)
    environment, devices = _environment(settings), ",".join(given)
    if devices.startswith("cuda:"):
        environment["CUDA_VISIBLE_DEVICES"] = devices.replace("cuda:", "")
    with (directory.logs / f"{role}.log").open("ab") as log:
        agent = subprocess.Popen(torchrun(settings, directory, resume), stdin=subprocess.DEVNULL, stdout=log,
                                 stderr=subprocess.STDOUT, start_new_session=True, env=environment)
    directory.write_pid(role, Process.of(agent.pid, devices))
    # A child whose exit nobody collects stays as a zombie for as long as the kernel lives.
    threading.Thread(target=agent.wait, name=f"reap {agent.pid}", daemon=True).start()


def train_command(directory: RunDirectory, resume: bool) -> list[str]:
    """The arguments of Python for every rank."""
    return ["-m", "tinylib", "train", "--config", str(directory.config_file), *(["--resume"] if resume else [])]


def _environment(settings: LaunchSettings) -> dict[str, str]:
    """This process's variables without those of a torchrun around it, with the cores divided among the processes."""
    kept = {name: value for name, value in os.environ.items()
            if name not in TORCHRUN_VARIABLES and not name.startswith(("TORCHELASTIC_", "PET_"))}
    share = hardware.cores() // (settings.world_size if settings.on_this_machine else settings.nproc_per_node)
    threads = str(settings.threads or kept.get("OMP_NUM_THREADS", max(1, share)))
    # The ranks import what this process imported, also from a checkout that is only on its sys.path.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), kept.get("PYTHONPATH")]))
    return kept | {"OMP_NUM_THREADS": threads, "TINYLIB_THREADS": threads, "PYTHONPATH": path,
                   "PYTHONUNBUFFERED": "1"} | RANK_VARIABLES
