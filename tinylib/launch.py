"""Start a training run on many processes from a notebook cell, and follow, stop or resume it from anywhere.

`launch` starts torchrun in a process session of its own and returns at once, so an interrupted, restarted or closed
kernel doesn't touch the training.  A `Run` keeps nothing in memory: all it shows is read from the run directory.
Sessions and signals are POSIX's; on Windows train in the calling process, with `tinylib.train.train`.
"""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinylib import hardware
from tinylib.config import ConfigError, TrainConfig, from_dict
from tinylib.rundir import ENDED, Process, RunDirectory, State
from tinylib.sizing import plan_batch

if TYPE_CHECKING:
    import pandas as pd

    from tinylib.model import GPT

TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
                      "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN_PREFIXES = ("TORCHELASTIC_", "PET_")


class RunFailed(RuntimeError):
    """A run failed; the message is the traceback of the process that failed first, or the last words of torchrun."""

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
        """"failed" as soon as one rank has recorded an error, else what the status says."""
        state: State = self.status()["state"]
        return "failed" if state != "finished" and self.directory.errors() else state

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

    def model(self) -> GPT:
        """The model of the newest checkpoint, on the CPU."""
        from tinylib.checkpoint import load_model

        return load_model(self.directory.checkpoint())

    def watch(self, every_s: float = 1.0) -> None:
        """Show the progress in the cell until the run has ended, at most twice a second; raises RunFailed.

        Interrupting the cell leaves the training alone.
        """
        screen = _Screen()
        for _ in self._until_ended(max(0.5, every_s)):
            screen.show(self._line())
        screen.show(self._line())

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
        """Ask every rank to finish its step, save and exit; end by force what is left after `timeout_s` and one step.

        Returns when no process of the run is left.
        """
        ranks = [process for role, process in self.directory.alive().items() if role != "agent"]
        family = _family(self.directory)
        for process in ranks:
            _signal(process, signal.SIGTERM)
        if ranks:
            # torchrun ends by itself once all its ranks have.
            _wait_until(lambda: not self.directory.alive(), timeout_s + self._step_s())
        if "agent" in self.directory.alive():
            # Halted, it starts no further rank while its family is counted.
            _signal(self.directory.processes()["agent"], signal.SIGSTOP)
        family += _family(self.directory)
        for process in family:
            _signal(process, signal.SIGKILL)
        _wait_until(lambda: not any(process.alive() for process in family), 10.0)
        if self.directory.status()["state"] == "lost":
            self.directory.write_status("stopped", detail="ended by force: the newest checkpoint is older than the end")

    def resume(self, nproc_per_node: int | Literal["auto"] | None = None) -> Run:
        """Go on from the newest checkpoint, on as many processes as before or on `nproc_per_node`.

        Raises ValueError if the run has finished.
        """
        if self.state == "finished":
            raise ValueError(f"{self!r} has taken all its steps: start a new run for more of them")
        written = self.directory.read_config()
        config = replace(from_dict(TrainConfig, written["train"]), run=str(self.directory.path))
        return launch(config, nproc_per_node or written["world_size"], resume=True)

    def remove(self) -> None:
        """Delete the run directory; raises ValueError while a process of the run is alive."""
        _refuse_alive(self.directory)
        if self.directory.path.is_dir():
            shutil.rmtree(self.directory.path)

    def __repr__(self) -> str:
        status = self.status()
        place = f", step {status['step']} of {status['steps']}" if "step" in status and "steps" in status else ""
        return f"Run({self.directory.name}, {self.state}{place})"

    def _repr_html_(self) -> str:
        path, home = self.directory.path, hardware.home().resolve()
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
        _wait_until(lambda: not self.directory.alive(), 5.0)
        errors = self.directory.errors()
        if errors:
            return RunFailed(f"rank {errors[0]['rank']} of run {self.directory.name}:\n{errors[0]['traceback']}")
        return RunFailed(f"run {self.directory.name} ended without a word from its ranks:\n{self._last_words()}")

    def _last_words(self, lines: int = 40) -> str:
        """The end of the first log with a traceback, else of torchrun's own."""
        texts = [file.read_text(encoding="utf-8", errors="replace")
                 for file in (*sorted(self.directory.logs.glob("rank*.log")), self.directory.agent_log)
                 if file.is_file()]
        text = next((text for text in texts if "Traceback" in text), texts[-1] if texts else "nothing was printed")
        return "\n".join(text.splitlines()[-lines:])

    def _step_s(self) -> float:
        step = self.directory.last("step")
        return float(step["dt_s"]) if step else 0.0

    def _line(self) -> str:
        """State, step, loss, bits per byte, tokens per second and time left, in one line."""
        steps, recent = int(self.directory.read_config()["train"]["steps"]), self.metrics().tail(10)
        parts, evaluation = [f"{self.directory.name}: {self.state}"], self.directory.last("eval")
        if len(recent):
            step = int(recent.index[-1])
            parts += [f"step {step:,} of {steps:,} {_bar(step / steps)}", f"loss {recent['loss'].iloc[-1]:.3f}"]
        if evaluation:
            parts += [f"{evaluation['val_bpb']:.3f} bits per byte"]
        if len(recent):
            parts += [f"{recent['tokens_per_s'].median():,.0f} tokens/s"]
            if self.state == "running":
                parts += [f"{_clock((steps - step) * recent['dt_s'].median())} left"]
        return "  ".join(parts)


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
    _check_data(config)
    run = Run(path)
    _check_directory(run, resume, replace_ended)
    run.directory.create({"train": asdict(config), "world_size": processes})
    run.directory.forget_start()
    _start(run.directory, processes, resume)
    return run


def attach(path: str | os.PathLike[str] | None = None) -> Run:
    """The run at `path`, from any notebook or program; a bare name is looked up among the profile's runs.

    Without a path, the run of this profile that was started last.  Raises FileNotFoundError if there is none.
    """
    if path is None:
        started = runs(hardware.profile().runs)
        if not started:
            raise FileNotFoundError(f"no run in {hardware.profile().runs}: launch one, or attach(path)")
        return started[-1]
    run = Run(path if RunDirectory(path).exists() else hardware.profile().runs / path)
    if not run.directory.exists():
        raise FileNotFoundError(f"path={str(path)!r} is no run directory: "
                                f"there are {[run.directory.name for run in runs(hardware.profile().runs)]}")
    return run


def runs(folder: str | os.PathLike[str]) -> list[Run]:
    """The runs in `folder` and the folders in it, the one started last at the end."""
    found = [RunDirectory(path) for pattern in ("*", "*/*") for path in Path(folder).glob(pattern) if path.is_dir()]
    found = [directory for directory in found if directory.exists()]
    return [Run(directory.path) for directory in sorted(found, key=lambda found: found.config.stat().st_mtime)]


def _processes(config: TrainConfig, nproc_per_node: int | Literal["auto"]) -> int:
    gpus = 0
    if config.device in ("auto", "cuda"):
        import torch

        gpus = torch.cuda.device_count()    # counts without taking hold of a device in this process
    if nproc_per_node == "auto":
        return max(1, gpus)
    if not isinstance(nproc_per_node, int) or isinstance(nproc_per_node, bool) or nproc_per_node < 1:
        raise ConfigError("launch", [f"nproc_per_node={nproc_per_node!r} is not a whole number above zero: "
                                     'use 1 or more, or "auto"'])
    if gpus and nproc_per_node > gpus:
        raise ConfigError("launch", [f"nproc_per_node={nproc_per_node} is more than this machine's GPUs: "
                                     f'use {gpus} or fewer, or device="cpu"'])
    return nproc_per_node


def _check_data(config: TrainConfig) -> None:
    from tinylib.shards import Shards

    shards, _ = Shards(config.data, "train"), Shards(config.data, "val")
    if shards.vocab_size > config.model.vocab_size:
        raise ConfigError("launch", [f"vocab_size={config.model.vocab_size} is smaller than the {shards.vocab_size} "
                                     f"ids of the shards in {config.data}: use {shards.vocab_size}, or other shards"])


def _refuse_alive(directory: RunDirectory) -> None:
    alive = directory.alive()
    if alive:
        pids = ", ".join(f"{role} {process.pid}" for role, process in alive.items())
        raise ValueError(f"run={str(directory.path)!r} still runs ({pids}): follow it with attach({directory.name!r}), "
                         f"end it with attach({directory.name!r}).stop(), or choose another run directory")


def _check_directory(run: Run, resume: bool, replace_ended: bool) -> None:
    directory = run.directory
    _refuse_alive(directory)
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


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether `condition` came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def _bar(share: float, width: int = 20) -> str:
    """A bar of text.

    >>> _bar(0.25, width=8)
    '██░░░░░░'
    """
    return "█" * round(share * width) + "░" * (width - round(share * width))


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(75), _clock(3_675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class _Screen:
    """One line of text that is updated in place: in a notebook by its display, in a terminal by a carriage return."""

    def __init__(self) -> None:
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        self.notebook = hasattr(shell, "kernel")
        self.handle: Any = None
        self.shown = ""

    def show(self, text: str) -> None:
        """Replace the line; a text that is already there is not sent again."""
        if text == self.shown:
            return
        if self.notebook:
            self._display(text)
        elif sys.stdout.isatty():
            print(f"\r{text:<{len(self.shown)}}", end="", flush=True)
        else:
            print(text, flush=True)
        self.shown = text

    def _display(self, text: str) -> None:
        from IPython.display import display

        bundle = {"text/plain": text}
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
