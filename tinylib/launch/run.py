"""`launch` starts a run; `Run` reads, follows, stops and resumes it from any process."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tinylib import checks, hardware, profiles, rundir
from tinylib.config import TrainConfig, from_dict
from tinylib.events import check_tensorboard
from tinylib.launch import start, stop
from tinylib.launch.devices import launch_lock, raise_if_busy
from tinylib.launch.hints import hint
from tinylib.launch.start import LaunchSettings
from tinylib.launch.stop import wait_until
from tinylib.launch.view import UPDATE_S, View
from tinylib.rundir import ENDED, Header, RunDirectory, State, Summary, absolute
from tinylib.shards import open_splits

if TYPE_CHECKING:
    from tinylib.model import GPT


class RunFailed(RuntimeError):
    """A run failed; the message is `Run.failure`'s."""

    def _render_traceback_(self) -> list[str]:
        """Traceback for IPython: the frames of the rank, not those of the cell that waited for it."""
        return f"{type(self).__name__}: {self}".splitlines()


class RunStopped(RuntimeError):
    """A run was stopped before its last step, while something waited for its end."""


class Run(RunDirectory):
    """A run directory and the processes that write it; shown in a notebook, a live view with buttons."""

    @property
    def state(self) -> State:
        """The state in the status, but "failed" as soon as one rank has recorded an error.

        "restarting" replaces "failed" and "stopped" while a torchrun is alive that may start the ranks again.
        """
        state: State = self.status()["state"]
        if state != "finished" and self.errors():
            state = "failed"
        may_restart = state in ("failed", "stopped") and self._settings().max_restarts > 0 and any(
            role.startswith("agent") for role in self.alive() | self.remote_processes())
        return "restarting" if may_restart else state

    def log(self, rank: int | None = 0, lines: int | None = None) -> str:
        """Output of the process of `rank`, all of it or its last `lines`; None asks for torchrun's own."""
        return _text(self.log_file(rank), lines)

    def failure(self) -> str | None:
        """Cause of a failure with a hint for the commonest ones; None if the run did not fail.

        It is the traceback of the rank that failed first, else the killed processes and the end of the logs.
        """
        if self.state not in ("failed", "lost"):
            return None
        errors, killed = self.errors(), self.killed_ranks()
        if errors:
            text = f"rank {errors[0]['rank']} of run {self.name}:\n{errors[0]['traceback'].rstrip()}"
        else:
            who = ", ".join(f"{role} (pid {process.pid})" for role, process in killed.items())
            what = f"{who} was killed from outside" if who else "it ended, and no rank recorded why"
            text = f"run {self.name}: {self.status().get('error', what)}\n{self._end_of_logs()}"
        advice = hint(text, killed=bool(killed))
        return f"{text}\nhint: {advice}" if advice else text

    @property
    def join_command(self) -> str:
        """Shell command for each further machine; UserError for a run that was not launched on several."""
        settings = self._settings()
        if settings.nnodes == 1:
            raise checks.UserError(f"{self!r} is on one machine: for more, launch with nnodes and rdzv_endpoint")
        command = start.torchrun(settings, self, resume=True)
        return shlex.join(["env", *map("=".join, start.RANK_VARIABLES.items()), *command])

    def model(self, device: str = "auto") -> GPT:
        """The model of the newest checkpoint on `device`, in the run's precision; a slow one on a CPU is float32."""
        from tinylib.checkpoint import load_model

        found, header = hardware.device(device), self.last(Header)
        slow = found.kind == "cpu" and hardware.dtype(found)[0] == "float32"
        return load_model(self.checkpoint(), found.kind, header.dtype if header and not slow else "float32")

    def watch(self) -> None:
        """Show the live view in this cell, or a status line in a terminal, until the run has ended.

        Raises RunFailed.  Interrupting the cell leaves the training alone.
        """
        view = View([self])
        try:
            for _ in self._until_ended(UPDATE_S):
                view.update()
        finally:
            view.update(last=True)
            view.follow()    # for Resume, or for what goes on after an interrupt

    def wait(self, timeout_s: float | None = None) -> Summary:
        """The summary of the run, once it has finished and its processes are gone.

        Raises RunFailed, RunStopped, or TimeoutError after `timeout_s`; none of these, and no interrupt of the cell,
        touches the training.
        """
        started_s = time.monotonic()
        for _ in self._until_ended(0.2):
            if timeout_s is not None and time.monotonic() - started_s > timeout_s:
                raise TimeoutError(f"{self!r} has not ended after timeout_s={timeout_s:g}: wait longer, or run.stop()")
        summary = self.summary()
        if self.state == "stopped" or summary is None:
            raise RunStopped(f"{self!r}: run.resume() goes on from there")
        return summary

    def stop(self, timeout_s: float = 10.0) -> None:
        """SIGTERM to every rank, which saves and exits; SIGKILL to what is left after `timeout_s` and one micro-batch.

        Returns when no process of the run is left on this machine; ranks on other machines stop with these.  Raises
        UserError where all of them are on other machines.
        """
        if not self.alive() and self.status()["state"] not in ENDED:
            hosts = ", ".join(sorted({process.host for process in self.remote_processes().values()}))
            raise checks.UserError(f"{self!r} has no process on this machine: stop it on {hosts}")
        stop.stop(self, timeout_s)

    def resume(self, nproc_per_node: int | Literal["auto"] | None = None, share: bool = False) -> Run:
        """Go on from the newest checkpoint, on as many processes as before or on `nproc_per_node`; see `launch`.

        Raises UserError if the run has finished.
        """
        if self.state == "finished":
            raise checks.UserError(f"{self!r} has taken all its steps: start a new run for more of them")
        config = replace(from_dict(TrainConfig, self.read_config()["train"]), run_dir=str(self.path))
        changed = {"nproc_per_node": nproc_per_node} if nproc_per_node else {}
        return launch(config, **asdict(self._settings()) | changed, resume=True, share=share)

    def remove(self) -> None:
        """Delete the files of the run; raises UserError while a process of it is alive."""
        start.raise_if_alive(self)
        self.remove_files()

    def __repr__(self) -> str:
        status = self.status()
        place = f", step {status['step']} of {status['steps']}" if "step" in status and "steps" in status else ""
        return f"Run({self.name}, {self.state}{place})"

    def _ipython_display_(self) -> None:
        show(self)

    def _until_ended(self, every_s: float) -> Iterator[None]:
        """Yield every `every_s` seconds until the run has ended and its processes are gone; raises RunFailed."""
        while self.state not in ENDED:
            yield
            time.sleep(every_s)
        # The rank that failed drags others down: once they have recorded it too, the earliest is the cause.
        wait_until(lambda: not self.alive(), 15.0 if self.state == "finished" else 5.0)
        if self.state in ("failed", "lost"):
            raise RunFailed(self.failure())

    def _settings(self) -> LaunchSettings:
        config = self.read_config()    # without "launch" where training was started by hand or by Slurm
        return LaunchSettings(**config.get("launch", {"nproc_per_node": config["world_size"]}))

    def _end_of_logs(self) -> str:
        """The end of the first log with a traceback, else of torchrun's own."""
        logs = [file for pattern in ("rank*.log", "agent*.log") for file in sorted(self.logs.glob(pattern))]
        told = [file for file in logs if "Traceback" in _text(file)] or logs[-1:]
        return _text(told[0], lines=40) if told else "nothing was printed"


def _text(log: Path, lines: int | None = None) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return text if lines is None else "\n".join(text.splitlines()[-lines:])


def launch(config: TrainConfig, nproc_per_node: int | Literal["auto"] = "auto", *, resume: bool = False,
           replace_ended: bool = False, share: bool = False, max_restarts: int = 0, nnodes: int = 1,
           rdzv_endpoint: str | None = None, threads: int | None = None) -> Run:
    """Start `config` under torchrun, detached in a process session of its own, and return at once.

    "auto" means one process per GPU; without a GPU one process, which by itself uses every core.  The run takes the
    first `nproc_per_node` GPUs in CUDA_VISIBLE_DEVICES; `share` trains on devices that another run holds, both slower.
    `resume` goes on from the newest checkpoint; `replace_ended` first removes an earlier run of that directory, unless
    it is still running.  torchrun starts all ranks again after a failure, up to `max_restarts` times.  A process has
    `threads`, by default OMP_NUM_THREADS, else its share of the cores.

    On `nnodes` machines, which share the run directory, `launch` with the same arguments on each, or `join_command` of
    the first one's run on the others.  They meet at `rdzv_endpoint`, host:port.

    Validates first: ConfigError for a batch that doesn't split or a device that another run holds, UserError for a
    device that is missing or a live run, FileNotFoundError for missing shards, FileExistsError for a taken folder.
    """
    if sys.platform == "win32":
        raise OSError("launch needs POSIX sessions and signals: on Windows use tinylib.train.train(config), or WSL")
    config = absolute(config)
    run, there = Run(config.run_dir), hardware.visible_devices(config.device)
    processes = len(there) if nproc_per_node == "auto" else nproc_per_node
    settings = LaunchSettings(processes, nnodes, rdzv_endpoint, max_restarts, threads)
    checks.raise_if("launch", settings.problems(config, there))
    check_tensorboard(config)
    open_splits(config.data, config.model.vocab_size)
    given = there[:processes]
    with launch_lock(run):
        joins = _joins(run, config, settings)
        if not share:
            raise_if_busy(run, given, joins)
        if not joins:
            start.prepare(run, resume, replace_ended)
            run.write_config(config, settings.world_size, launch=asdict(settings))
        start.start(settings, run, resume, given)
    if nnodes > 1 and not joins:
        print(f"on each further machine: {run.join_command}")
    return run


def _joins(run: Run, config: TrainConfig, settings: LaunchSettings) -> bool:
    """Whether another machine has begun this very run; ConfigError if it did with other settings."""
    if settings.nnodes == 1 or not run.exists() or run.state in ENDED:
        return False
    written = run.read_config()
    there, here = written["train"] | written.get("launch", {}), rundir.plain(config) | asdict(settings)
    checks.raise_if("launch", [f"{name} is {there.get(name)!r} on the machine that began this run, and {here[name]!r} "
                               "here: call launch with the same on all"
                               for name in here if there.get(name) != here[name]])
    return True


def attach(name: str | os.PathLike[str] | None = None) -> Run:
    """The run at a path or by its name, from any notebook or program; `tinylib.rundir.find_run` names the errors.

    Without a name, the run of this profile that was started last.  Raises FileNotFoundError if there is none.
    """
    if name is not None:
        return Run(rundir.find_run(name).path)
    started = rundir.runs(profiles.profile().runs)
    if not started:
        raise FileNotFoundError(f"no run in {profiles.profile().runs}: launch one, or attach(name)")
    return Run(started[-1].path)


def runs(folder: str | os.PathLike[str] | None = None) -> list[Run]:
    """The runs in `folder` and in the folders in it, by default the home's, the one started last at the end."""
    return [Run(found.path) for found in rundir.runs(folder)]


def show(*runs: Run) -> None:
    """Show one live view of several runs, side by side, in this cell; raises ConfigError for anything but a Run."""
    checks.raise_if("show", [f"run={run!r} is not a Run: use launch(...) or attach(name)" for run in runs
                             if not isinstance(run, Run)] or ([] if runs else ["no run was given: use show(attach())"]))
    view = View(runs)
    view.update(last=True)
    view.follow()
