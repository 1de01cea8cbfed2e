"""A run directory and the processes that write it: `Run`, and how to find one."""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinylib import profiles
from tinylib.config import TrainConfig, from_dict
from tinylib.launch.hints import hint
from tinylib.launch.nodes import Spread, join_command
from tinylib.launch.progress import FASTEST_S, Progress, Screen
from tinylib.rundir import ENDED, Process, RunDirectory, State

if TYPE_CHECKING:
    import pandas as pd

    from tinylib.model import GPT


class RunFailed(RuntimeError):
    """A run failed; the message is what `Run.failure` says."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the frames of the rank, not those of the cell that waited for it."""
        return [f"{type(self).__name__}: {line}" if not number else line
                for number, line in enumerate(str(self).splitlines())]


class RunStopped(RuntimeError):
    """A run that was waited for was stopped before its last step."""


class Run:
    """A run directory and the processes that write it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.directory = RunDirectory(Path(path).resolve())

    @property
    def state(self) -> State:
        """What the status says, but "failed" as soon as one rank has recorded an error.

        Where a torchrun that may start the ranks again is still there, "restarting" stands for "failed" and "stopped".
        """
        state: State = self.status()["state"]
        if state in ("finished", "lost"):
            return "failed" if state == "lost" and self.directory.errors() else state
        if self.directory.errors():
            state = "failed"
        return "restarting" if state in ENDED and self._may_restart() else state

    def status(self) -> dict[str, Any]:
        """The status that rank 0 last wrote."""
        return self.directory.status()

    def metrics(self, kind: Literal["step", "eval"] = "step") -> pd.DataFrame:
        """One row a step, or an evaluation, indexed by step."""
        return self.directory.metrics(kind)

    def log(self, rank: int | None = 0) -> str:
        """What the process of `rank` printed; None asks for torchrun itself."""
        file = self.directory.agent_log if rank is None else self.directory.log_file(rank)
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def failure(self) -> str | None:
        """Why the run failed, None if it didn't: the traceback of the rank that failed first, or the processes that
        were killed and the last words of torchrun; and for the commonest causes a hint.
        """
        if self.state not in ("failed", "lost"):
            return None
        name, errors, killed = self.directory.name, self.directory.errors(), self.directory.killed_ranks()
        if errors:
            text = f"rank {errors[0]['rank']} of run {name}:\n{errors[0]['traceback'].rstrip()}"
        else:
            who = ", ".join(f"{role} (pid {process.pid})" for role, process in killed.items())
            what = f"{who} ended without a word, killed from outside" if who else "it ended, and no rank said why"
            text = "\n".join([f"run {name}: {self.status().get('error', what)}", self._last_words()])
        advice = hint(text)
        return f"{text}\nhint: {advice}" if advice else text

    @property
    def join_command(self) -> str:
        """What to run on each further machine of a run that was launched for several; ValueError for any other."""
        spread = self._spread()
        if spread is None or spread.most == 1:
            raise ValueError(f"{self!r} is on one machine: for more, launch with nnodes and rdzv_endpoint")
        return join_command(spread, self.directory)

    def model(self) -> GPT:
        """The model of the newest checkpoint, on the CPU."""
        from tinylib.checkpoint import load_model

        return load_model(self.directory.checkpoint())

    def watch(self, every_s: float = 1.0) -> None:
        """Show the progress in the cell until the run has ended, at most twice a second; raises RunFailed.

        In a notebook with the loss curve, in a terminal as one line.  Interrupting the cell leaves the training alone.
        """
        screen, progress = Screen(self.directory.name), Progress(self.directory)
        try:
            for _ in self._until_ended(max(FASTEST_S, every_s)):
                screen.show(progress, self.state, self.status().get("ranks", ()))
        finally:
            screen.show(progress, self.state, self.status().get("ranks", ()), last=True)

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """The summary of the run, once it has finished and its processes are gone.

        Raises RunFailed, RunStopped, or TimeoutError when `timeout_s` have passed; none of these, and no interrupt
        of the cell, touches the training.
        """
        started_s = time.monotonic()
        for _ in self._until_ended(0.2):
            if timeout_s is not None and time.monotonic() - started_s > timeout_s:
                raise TimeoutError(f"{self!r} has not ended after timeout_s={timeout_s:g}: wait longer, or run.stop()")
        summary = self.directory.summary()
        if self.state == "stopped" or summary is None:
            raise RunStopped(f"{self!r}: run.resume() goes on from there")
        return summary

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask every rank to save and exit; end by force what is left after `timeout_s` and one micro-batch.

        The step at hand is left undone.  Returns when no process of the run is left on this machine; those on other
        machines, told by these, end too.  Raises ValueError where all of them are elsewhere.
        """
        if not self.directory.alive() and self.status()["state"] not in ENDED:
            hosts = ", ".join(sorted({process.host for process in self.directory.remote_processes().values()}))
            raise ValueError(f"{self!r} has no process on this machine: stop it on {hosts}")
        ranks = [process for role, process in self.directory.alive().items() if not role.startswith("agent")]
        family = _family(self.directory)
        for process in ranks:
            _signal(process, signal.SIGTERM)
        if ranks:
            # torchrun ends by itself once all its ranks have.
            wait_until(lambda: not self.directory.alive(), timeout_s + self._micro_batch_s())
        for role, process in self.directory.alive().items():
            if role.startswith("agent"):    # halted, it starts no further rank while its family is counted
                _signal(process, signal.SIGSTOP)
        family += _family(self.directory)
        for process in family:
            _signal(process, signal.SIGKILL)
        wait_until(lambda: not any(process.alive() for process in family), 10.0)
        if self.directory.status()["state"] == "lost":
            self.directory.write_status("stopped", detail="ended before it could save: resume goes on from the newest "
                                        "checkpoint, if there is one")

    def resume(self, nproc_per_node: int | Literal["auto"] | None = None,
               if_busy: Literal["refuse", "queue", "share"] = "refuse") -> Run:
        """Go on from the newest checkpoint, on as many processes as before or on `nproc_per_node`; see `launch`.

        Raises ValueError if the run has finished.
        """
        if self.state == "finished":
            raise ValueError(f"{self!r} has taken all its steps: start a new run for more of them")
        # `start` needs this class, so it can't be imported on top.
        from tinylib.launch.start import launch

        written = self.directory.read_config()
        config = replace(from_dict(TrainConfig, written["train"]), run_dir=str(self.directory.path))
        spread = self._spread() or Spread(written["world_size"])
        return launch(config, nproc_per_node or spread.nproc_per_node, resume=True, if_busy=if_busy,
                      nnodes=(spread.least, spread.most), rdzv_endpoint=spread.rdzv_endpoint,
                      max_restarts=spread.max_restarts)

    def remove(self) -> None:
        """Delete the run directory; raises ValueError while a process of the run is alive."""
        refuse_alive(self.directory)
        if self.directory.path.is_dir():
            shutil.rmtree(self.directory.path)

    def __repr__(self) -> str:
        status = self.status()
        place = f", step {status['step']} of {status['steps']}" if "step" in status and "steps" in status else ""
        return f"Run({self.directory.name}, {self.state}{place})"

    def _repr_html_(self) -> str:
        path, home = self.directory.path, profiles.home().resolve()
        place = path.relative_to(home) if path.is_relative_to(home) else path.name
        return f"<code>{html.escape(repr(self))}</code> <small>{html.escape(str(place))}</small>"

    def _until_ended(self, every_s: float) -> Iterator[None]:
        """Yield every `every_s` seconds until the run has ended and its processes are gone; raises RunFailed."""
        ended_s = None
        while True:
            state = self.state
            if state in ("failed", "lost"):
                raise self._failure()
            if state in ENDED:
                ended_s = ended_s or time.monotonic()
                if not self.directory.alive() or time.monotonic() - ended_s > 15:
                    return
            yield
            time.sleep(every_s if state not in ENDED else 0.1)

    def _failure(self) -> RunFailed:
        # The rank that failed drags others down: let them record it too, then blame the first.
        wait_until(lambda: not self.directory.alive(), 5.0)
        return RunFailed(self.failure())

    def _spread(self) -> Spread | None:
        """How the run was launched; None if it was begun by hand."""
        facts = self.directory.read_config().get("launch")
        return Spread(**facts) if facts else None

    def _may_restart(self) -> bool:
        """Whether a torchrun lives that starts the ranks again after a failure, or with other machines."""
        agents = [role for role in self.directory.alive() | self.directory.remote_processes() if role.startswith("agent")]
        spread = self._spread() if agents else None
        return spread is not None and spread.restarts

    def _last_words(self, lines: int = 40) -> str:
        """The end of the first log with a traceback, else of torchrun's own."""
        files = (*sorted(self.directory.logs.glob("rank*.log")), *sorted(self.directory.logs.glob("agent*.log")))
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
        text = next((text for text in texts if "Traceback" in text), texts[-1] if texts else "nothing was printed")
        return "\n".join(text.splitlines()[-lines:])

    def _micro_batch_s(self) -> float:
        step, header = self.directory.last("step"), self.directory.last("header")
        return float(step["dt_s"]) / header["accumulation"] if step and header else 0.0


def attach(path: str | os.PathLike[str] | None = None) -> Run:
    """The run at `path`, from any notebook or program; a bare name is looked up among the profile's runs.

    Without a path, the run of this profile that was started last.  Raises FileNotFoundError if there is none.
    """
    if path is None:
        started = runs(profiles.profile().runs)
        if not started:
            raise FileNotFoundError(f"no run in {profiles.profile().runs}: launch one, or attach(path)")
        return started[-1]
    run = Run(path if RunDirectory(path).exists() else profiles.profile().runs / path)
    if not run.directory.exists():
        raise FileNotFoundError(f"path={str(path)!r} is no run directory: "
                                f"there are {[run.directory.name for run in runs(profiles.profile().runs)]}")
    return run


def runs(folder: str | os.PathLike[str], deep: bool = True) -> list[Run]:
    """The runs in `folder` and, if `deep`, in the folders in it; the one started last at the end."""
    paths = [path for pattern in (("*", "*/*") if deep else ("*",)) for path in Path(folder).glob(pattern)]
    found = [RunDirectory(path) for path in paths if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]
    found = [directory for directory in found if directory.exists()]
    return [Run(directory.path) for directory in sorted(found, key=lambda found: found.config.stat().st_mtime)]


def refuse_alive(directory: RunDirectory) -> None:
    """Raise ValueError while a process of the run is alive, or may be on another machine."""
    alive = directory.alive()
    if not alive and directory.status()["state"] not in ENDED:
        alive = directory.remote_processes()
    if alive:
        pids = ", ".join(f"{role} {process.pid} on {process.host}" for role, process in alive.items())
        name = str(directory.path)
        raise ValueError(f"run={name!r} still runs ({pids}): follow it with attach({name!r}), "
                         f"end it with attach({name!r}).stop(), or choose another run directory")


def _family(directory: RunDirectory) -> list[Process]:
    """The processes of a run that are alive, and all their descendants."""
    import psutil

    found: list[Process] = []
    for process in directory.alive().values():
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            found += [Process(member.pid, member.create_time()) for member in tree]
    return found


def _signal(process: Process, number: signal.Signals) -> None:
    """Send a signal to this very process, if it is still there."""
    if process.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether `condition` came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True
