"""`RunDirectory`: the paths of a run, its writers and its readers; the one place that knows the file names."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tinylib import files, profiles
from tinylib.checks import UserError, join_or
from tinylib.config import TrainConfig
from tinylib.files import read_json, write_json
from tinylib.rundir.processes import Process
from tinylib.rundir.records import KINDS, Eval, Header, Record, Step, Summary, from_line, to_line

if TYPE_CHECKING:
    import pandas as pd

State = Literal["starting", "running", "restarting", "finished", "stopped", "failed", "lost"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed", "lost")
SILENCE_S = 300.0
"""Age of a status up to which processes on another machine are taken for alive."""
Kind = TypeVar("Kind", Header, Step, Eval, Summary)


class RunDirectory:
    """The files of one training run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.status_file = self.path / "status.json"
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "tensorboard"
        self.logs = self.path / "logs"
        self.pids = self.path / "pids"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    def exists(self) -> bool:
        """Whether a run was ever begun here; UserError where config.json is damaged."""
        return "train" in (read_json(self.config_file) or {})    # that of an export or a checkpoint has no such field

    def log_file(self, rank: int | None) -> Path:
        """Standard output and error of the process of `rank`; None asks for torchrun's own."""
        return self.logs / ("agent.log" if rank is None else f"rank{rank}.log")

    # Writers

    def create(self) -> None:
        """Make the folders."""
        for folder in (self.checkpoints, self.logs, self.pids):
            folder.mkdir(parents=True, exist_ok=True)

    def write_config(self, train: TrainConfig, world_size: int, launch: dict[str, Any] | None = None) -> None:
        """Write config.json: configuration, number of processes, launch settings, versions and git commit.

        `launch` calls this, or `train` where it was not launched; ranks only read the file.
        """
        self.create()
        settings = {"launch": launch} if launch else {}
        write_json(self.config_file, {"train": plain(train), "world_size": world_size, **settings, **_origin()})

    def write_status(self, state: State, **facts: Any) -> None:
        """Replace the status: its state and whatever else rank 0 knows (step, steps, error …)."""
        write_json(self.status_file, {"state": state, "time_s": time.time(), **facts})

    def write_pid(self, role: str, process: Process | None = None) -> None:
        """Record `process`, by default the calling one, as `role`: "agent" or "rank0", "rank1" …"""
        write_json(self.pids / f"{role}.json", asdict(process or Process.of()))

    def remove_pid(self, role: str) -> None:
        """Remove the record of `role`, because its process has left the run even if it lives on."""
        (self.pids / f"{role}.json").unlink(missing_ok=True)

    def write_error(self, rank: int, traceback: str) -> None:
        """Record the failure of `rank`; the earliest of these is the cause, the others follow from it."""
        write_json(self.logs / f"rank{rank}.error.json", {"rank": rank, "time_s": time.time(), "traceback": traceback})

    def remove_stale(self) -> None:
        """Remove what an earlier start left behind: errors, pids of dead processes, temporary files."""
        dead = [role for role, process in self.processes().items() if process.gone()]
        for file in (*self.logs.glob("rank*.error.json"), *(self.pids / f"{role}.json" for role in dead)):
            file.unlink(missing_ok=True)
        for folder in (self.path, self.checkpoints, self.logs, self.pids):
            files.remove_stale(folder)

    def append(self, record: Record) -> None:
        """Append one record to the metrics."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(to_line(record))

    def truncate_metrics(self, step: int) -> None:
        """Drop what was recorded after the checkpoint of `step` was written, before a run resumes from there.

        That is the summary of an earlier end too, and the evaluation of `step` itself, which comes after saving.
        """
        kept = [record for record in self.records() if isinstance(record, Header)
                or (isinstance(record, Step) and record.step <= step)
                or (isinstance(record, Eval) and record.step < step)]
        files.write_text(self.metrics_file, "".join(map(to_line, kept)))

    def prune(self, count: int) -> None:
        """Remove all checkpoints but the newest `count` and the best."""
        for step in set(self.saved_steps()[:-count]) - {self.best_step()}:
            part = files.tmp_path(self.checkpoint_path(step))
            self.checkpoint_path(step).replace(part)    # so that nobody ever finds half of it
            shutil.rmtree(part)

    def remove_files(self) -> None:
        """Delete what a run writes, and the folder unless it holds something else."""
        files.remove_stale(self.path)
        for path in (self.checkpoints, self.events, self.logs, self.pids, self.metrics_file, self.status_file,
                     self.config_file):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    # Readers

    def read_config(self) -> dict[str, Any]:
        """The content of config.json; FileNotFoundError where no run was begun."""
        config = read_json(self.config_file)
        if config is None:
            raise FileNotFoundError(f"no run at {self.path}: {self.config_file.name} is missing")
        return config

    def records(self) -> Iterator[Record]:
        """Every complete record of the metrics; a line that is still being written is left for next time."""
        if not self.metrics_file.is_file():
            return
        with self.metrics_file.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    return
                try:
                    yield from_line(line)
                except (ValueError, KeyError) as error:
                    raise UserError(f"line {number} of {self.metrics_file} is no record ({error!r}): delete the line, "
                                    "or restore the file") from None

    def metrics(self, kind: Literal["step", "eval"] = "step") -> pd.DataFrame:
        """One row a step (or evaluation), indexed by step; columns are the fields of `Step` (or `Eval`)."""
        import pandas as pd

        rows = [asdict(record) for record in self.records() if isinstance(record, KINDS[kind])]
        return pd.DataFrame(rows, columns=None if rows else ["step"]).set_index("step")

    def last(self, kind: type[Kind]) -> Kind | None:
        """The newest record of its kind, None if there is none."""
        if not self.metrics_file.is_file():
            return None
        records = map(from_line, files.lines_backwards(self.metrics_file))
        return next((record for record in records if isinstance(record, kind)), None)

    def summary(self) -> Summary | None:
        """The record of a run that ended by itself."""
        return self.last(Summary)

    def status(self) -> dict[str, Any]:
        """The state as rank 0 last wrote it; "lost" if the state says running and no process of the run is alive."""
        alive = self.alive() or self.remote_processes()    # before reading: what a dead process wrote is all there
        status: dict[str, Any] = {"state": "starting"}
        with suppress(UserError):    # an empty file, which a crash of the system can leave, tells nothing
            status = read_json(self.status_file) or status
        if status["state"] not in ENDED and not alive:
            status["state"] = "lost"
        return status

    def processes(self) -> dict[str, Process]:
        """Every recorded process by role, alive or not."""
        found = {file.stem: read_json(file) for file in sorted(self.pids.glob("*.json"))}
        return {role: Process(**record) for role, record in found.items() if record}

    def alive(self) -> dict[str, Process]:
        """The processes of this run that are alive on this machine."""
        return {role: process for role, process in self.processes().items() if process.alive()}

    def remote_processes(self) -> dict[str, Process]:
        """The processes on other machines, all of them while the status is younger than SILENCE_S, then none."""
        found = {role: process for role, process in self.processes().items() if process.host != platform.node()}
        newest = self.status_file if self.status_file.is_file() else self.pids
        return found if found and time.time() - newest.stat().st_mtime < SILENCE_S else {}

    def errors(self) -> list[dict[str, Any]]:
        """Recorded failures of ranks (`rank`, `time_s`, `traceback`), the first failure first."""
        found = [read_json(file) for file in self.logs.glob("rank*.error.json")]
        return sorted(filter(None, found), key=lambda error: error["time_s"])

    def killed_ranks(self) -> dict[str, Process]:
        """Ranks that ended without recording an error, as a killed process does."""
        gone = {role: process for role, process in self.processes().items()
                if role.startswith("rank") and process.gone()}
        failed = {f"rank{error['rank']}" for error in self.errors()}    # read last: a rank records before it is gone
        return {role: process for role, process in gone.items() if role not in failed}

    def saved_steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        names = [re.fullmatch(r"step_(\d+)", folder.name) for folder in self.checkpoints.glob("step_*")]
        return sorted(int(name[1]) for name in names if name)

    def best_step(self) -> int | None:
        """The step with the fewest bits per byte on the validation text, of those saved and evaluated."""
        saved = set(self.saved_steps())
        scores = {record.step: record.val_bpb for record in self.records() if isinstance(record, Eval)}
        return min(saved & scores.keys(), key=lambda step: scores[step], default=None)

    def checkpoint(self, step: int | None = None) -> Path:
        """Folder of the checkpoint at `step`, the newest by default; FileNotFoundError if there is none."""
        steps = self.saved_steps()
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{wanted} in {self.checkpoints}: there are {steps or 'none'}")
        return self.checkpoint_path(steps[-1] if step is None else step)

    def checkpoint_path(self, step: int) -> Path:
        """Path of the checkpoint of `step`, whether it is there or not."""
        return self.checkpoints / f"step_{step:06d}"


def runs(folder: str | os.PathLike[str] | None = None) -> list[RunDirectory]:
    """The runs in `folder` and in the folders in it, by default the home's, the one started last at the end."""
    folder = profiles.home() / "runs" if folder is None else Path(folder)
    found = [file for pattern in ("*/config.json", "*/*/config.json") for file in folder.glob(pattern)]
    there = [RunDirectory(file.parent) for file in sorted(found, key=lambda file: file.stat().st_mtime)]
    return [run for run in there if run.exists()]


def find_run(name: str | os.PathLike[str]) -> RunDirectory:
    """The run at a path, or any run of this home by its name: `untied`, or `cpu/untied` as `runs` lists it.

    Of several of the same name the profile's own is taken.  Raises FileNotFoundError where none fits and
    UserError where several do.
    """
    if RunDirectory(name).exists():
        return RunDirectory(name)
    labels = {f"{run.path.parent.name}/{run.name}": run for run in runs()}
    found = [label for label, run in labels.items() if str(name) in (label, run.name)]
    if len(found) > 1 and (own := f"{profiles.profile().runs.name}/{name}") in found:
        found = [own]
    if len(found) > 1:
        raise UserError(f"run={str(name)!r} is the name of several runs: use {join_or(found)}")
    if not found:
        raise FileNotFoundError(f"run={str(name)!r} is neither a run directory nor the name of a run: there are "
                                + (", ".join(labels) or "none"))
    return labels[found[0]]


def absolute(config: TrainConfig) -> TrainConfig:
    """The configuration with absolute paths, which mean the same from any working directory."""
    given = {name: getattr(config, name) for name in ("run_dir", "data", "init_from")}
    return replace(config, **{name: str(Path(path).expanduser().resolve())
                                          for name, path in given.items() if path is not None})


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as it comes back from JSON: a dictionary with lists for tuples."""
    return dict(json.loads(json.dumps(asdict(config))))


def _origin() -> dict[str, Any]:
    """Versions, platform, and the git commit of this checkout (None outside of one)."""
    versions = {name: metadata.version(name) for name in ("tinylib", "torch", "numpy") if find_spec(name)}
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = ""
    with suppress(OSError, subprocess.TimeoutExpired):
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    return {"versions": {**versions, "python": platform.python_version()}, "platform": platform.platform(),
            "git_commit": commit or None}
