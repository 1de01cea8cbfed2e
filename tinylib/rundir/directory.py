"""`RunDirectory`: the paths of a run, its writers and its readers."""

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
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinylib.rundir.files import lines_backwards, part_of, sweep, write_json, write_text
from tinylib.rundir.processes import Process

if TYPE_CHECKING:
    import pandas as pd

State = Literal["queued", "starting", "running", "restarting", "finished", "stopped", "failed", "lost"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed", "lost")
SILENCE_S = 300.0
"""How old a status may grow while processes on another machine are still taken for alive."""


class RunDirectory:
    """One training run on disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.status_file = self.path / "status.json"
        self.checkpoints = self.path / "checkpoints"
        self.events = self.path / "tensorboard"
        self.logs = self.path / "logs"
        self.pids = self.path / "pids"
        self.agent_log = self.logs / "agent.log"

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    def exists(self) -> bool:
        """Whether a run was ever begun here."""
        return self.config.is_file()

    def log_file(self, rank: int) -> Path:
        """What the process of `rank` printed."""
        return self.logs / f"rank{rank}.log"

    # Writers

    def create(self, config: dict[str, Any] | None = None) -> None:
        """Make the folders and add `config`, versions and git commit to what is written (None: another rank does)."""
        for folder in (self.checkpoints, self.logs, self.pids):
            folder.mkdir(parents=True, exist_ok=True)
        if config is not None:
            write_json(self.config, {**(_read_json(self.config) or {}), **config, **_origin()})

    def write_status(self, state: State, **facts: Any) -> None:
        """Replace the status: its state and whatever else rank 0 knows (step, steps, error …)."""
        write_json(self.status_file, {"state": state, "time_s": time.time(), **facts})

    def write_pid(self, role: str, process: Process | None = None) -> None:
        """Record `process`, by default the calling one, as `role`: "agent" or "rank0", "rank1" …"""
        write_json(self.pids / f"{role}.json", asdict(process or Process.current()))

    def forget_pid(self, role: str) -> None:
        """The process of `role` has left the run, even if it lives on."""
        (self.pids / f"{role}.json").unlink(missing_ok=True)

    def write_error(self, rank: int, traceback: str) -> None:
        """Record why the process of `rank` failed; the earliest of these is the cause, the others follow from it."""
        write_json(self.logs / f"rank{rank}.error.json", {"rank": rank, "time_s": time.time(), "traceback": traceback})

    def sweep(self) -> None:
        """Drop what an earlier start left behind: errors, pids of processes that are gone, what was half written."""
        gone = [role for role, process in self.processes().items() if process.gone()]
        for file in (*self.logs.glob("rank*.error.json"), *(self.pids / f"{role}.json" for role in gone)):
            file.unlink(missing_ok=True)
        for folder in (self.path, self.checkpoints, self.logs, self.pids):
            sweep(folder)

    def forget_start(self) -> None:
        """Drop what the last start left, its status too, before the run starts again."""
        self.sweep()
        for file in (self.status_file, *self.pids.glob("*.json")):
            file.unlink(missing_ok=True)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to the metrics; `record["kind"]` says what it is: header, step, eval or summary."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Drop what was recorded after the checkpoint of `step` was written, before a run resumes from there.

        So the summary of an earlier end is dropped, and the evaluation of `step` itself, which comes after saving.
        """
        kept = [record for record in self.records() if record["kind"] == "header"
                or (record["kind"] == "step" and record["step"] <= step)
                or (record["kind"] == "eval" and record["step"] < step)]
        write_text(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))

    def prune(self, count: int) -> None:
        """Remove all checkpoints but the newest `count` and the best."""
        for step in set(self.saved_steps()[:-count]) - {self.best_step()}:
            part = part_of(self.checkpoint_path(step))
            self.checkpoint_path(step).replace(part)    # so that nobody ever finds half of it
            shutil.rmtree(part)

    # Readers

    def read_config(self) -> dict[str, Any]:
        """What `create` wrote."""
        if not self.exists():
            raise FileNotFoundError(f"no run at {self.path}: {self.config.name} is missing")
        return dict(json.loads(self.config.read_text(encoding="utf-8")))

    def records(self) -> Iterator[dict[str, Any]]:
        """Every whole line of the metrics; a line that is still being written is left for next time."""
        if not self.metrics_file.is_file():
            return
        with self.metrics_file.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def metrics(self, kind: Literal["step", "eval"] = "step") -> pd.DataFrame:
        """One row a step (or evaluation), indexed by step."""
        import pandas as pd

        rows = [record for record in self.records() if record["kind"] == kind]
        frame = pd.DataFrame(rows, columns=None if rows else ["step"])
        return frame.drop(columns="kind", errors="ignore").set_index("step")

    def summary(self) -> dict[str, Any] | None:
        """The last line of a run that ended by itself."""
        return self.last("summary")

    def last(self, kind: Literal["header", "step", "eval", "summary"]) -> dict[str, Any] | None:
        """The newest line of its kind, None if there is none."""
        if not self.metrics_file.is_file():
            return None
        records = map(json.loads, lines_backwards(self.metrics_file))
        return next((record for record in records if record["kind"] == kind), None)

    def status(self) -> dict[str, Any]:
        """The state as rank 0 last wrote it; "lost" if the state says running and no process of the run is alive."""
        nothing = {"state": "starting"}
        status = _read_json(self.status_file) or nothing
        if status["state"] not in ENDED and not (self.alive() or self.elsewhere()):
            # The last process may have ended between the two readings: what it wrote last is what counts.
            status = _read_json(self.status_file) or nothing
            if status["state"] not in ENDED:
                status["state"] = "lost"
        return status

    def processes(self) -> dict[str, Process]:
        """Every recorded process by role, alive or not."""
        found = {file.stem: _read_json(file) for file in sorted(self.pids.glob("*.json"))}
        return {role: Process(**record) for role, record in found.items() if record}

    def alive(self) -> dict[str, Process]:
        """The processes of this run that still run on this machine."""
        return {role: process for role, process in self.processes().items() if process.alive()}

    def elsewhere(self) -> dict[str, Process]:
        """The processes on other machines, all of them while the status is younger than SILENCE_S, then none."""
        found = {role: process for role, process in self.processes().items() if process.host != platform.node()}
        last_word = self.status_file if self.status_file.is_file() else self.pids
        return found if found and time.time() - last_word.stat().st_mtime < SILENCE_S else {}

    def errors(self) -> list[dict[str, Any]]:
        """What ranks recorded when they failed (`rank`, `time_s`, `traceback`), the first failure first."""
        found = [_read_json(file) for file in self.logs.glob("rank*.error.json")]
        return sorted(filter(None, found), key=lambda error: error["time_s"])

    def vanished(self) -> dict[str, Process]:
        """Ranks that ended without a word, as a killed process does: recorded, not alive, and no error of theirs."""
        spoke = {f"rank{error['rank']}" for error in self.errors()}
        return {role: process for role, process in self.processes().items()
                if role.startswith("rank") and role not in spoke and process.gone()}

    def saved_steps(self) -> list[int]:
        """Steps with a whole checkpoint, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        names = [re.fullmatch(r"step_(\d+)", folder.name) for folder in self.checkpoints.iterdir()]
        return sorted(int(name[1]) for name in names if name)

    def best_step(self) -> int | None:
        """The step with the fewest bits per byte on the validation text, of those saved and evaluated."""
        saved = set(self.saved_steps())
        scores = {record["step"]: record["val_bpb"] for record in self.records() if record["kind"] == "eval"}
        return min(saved & scores.keys(), key=lambda step: scores[step], default=None)

    def checkpoint(self, step: int | None = None) -> Path:
        """Folder of the checkpoint at `step`, the newest by default; FileNotFoundError if there is none."""
        steps = self.saved_steps()
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(f"{wanted} in {self.checkpoints}: there are {steps or 'none'}")
        return self.checkpoint_path(steps[-1] if step is None else step)

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of `step` lies or will lie."""
        return self.checkpoints / f"step_{step:06d}"


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as it comes back from JSON: a dictionary with lists for tuples."""
    return dict(json.loads(json.dumps(asdict(config))))


def _read_json(path: Path) -> dict[str, Any] | None:
    """What lies at `path`; None if it is gone by now, as pids and errors may be at any moment."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _origin() -> dict[str, Any]:
    """What made a run: versions, platform, and the commit of this checkout, None outside of one."""
    versions = {name: metadata.version(name) for name in ("tinylib", "torch", "numpy") if find_spec(name)}
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = ""
    with suppress(OSError, subprocess.TimeoutExpired):
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    return {"versions": {**versions, "python": platform.python_version()}, "platform": platform.platform(),
            "git_commit": commit or None}
