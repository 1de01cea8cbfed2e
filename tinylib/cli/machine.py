"""Verbs for this machine: its runs, doctor, course."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tinylib import launch
from tinylib.cli import tables
from tinylib.cli.verbs import App, Result, RunName, app, verb
from tinylib.config import TrainConfig, from_dict
from tinylib.launch import Run, attach
from tinylib.rundir import ENDED, Eval, Step

runs = App()
app.command(runs, name="runs", help="Runs of this machine: list (the default), show, stop, rm.")


@verb(runs, name="list", is_default=True)
def list_runs(folder: Path | None = None) -> Result:
    """Runs with state, step, loss, bits per byte and age, the one started last at the end.

    Args:
        folder: where to look; None takes the runs of every profile
    """
    import pandas as pd

    rows = [_facts(run) for run in launch.runs(folder)]
    shown = pd.DataFrame([{name: tables.text(name, value) for name, value in row.items() if value is not None}
                          for row in rows]).rename(columns={"val_bpb": "bits per byte", "age_s": "age"})
    return Result({"runs": rows}, shown.to_string(index=False, na_rep="") if rows else "no runs yet: tinylib train")


def _facts(run: Run) -> dict[str, Any]:
    step, evaluation = run.last(Step), run.last(Eval)
    return {"run": f"{run.path.parent.name}/{run.name}", "state": run.state, "step": step and step.step,
            "loss": step and step.loss, "val_bpb": evaluation and evaluation.val_bpb,
            "age_s": round(time.time() - run.config_file.stat().st_mtime, 1)}


@verb(runs)
def show(run: RunName, lines: int = 10) -> Result:
    """State, model, processes and checkpoints of a run, and the end of its log or why it failed.

    Args:
        lines: lines of the log
    """
    chosen = attach(run)
    written, step, failure = chosen.read_config(), chosen.last(Step), chosen.failure()
    config, elsewhere = from_dict(TrainConfig, written["train"]), chosen.remote_processes()
    facts = _facts(chosen) | {
        "run": chosen.path, "processes": written["world_size"], "checkpoints": chosen.saved_steps(),
        **{name: getattr(config, name) for name in ("steps", "model", "data", "total_batch_size", "device_batch_size")},
        **{name: getattr(step, name, None) for name in ("tokens_per_s", "mfu", "grad_norm")},
        "alive": {role: process.pid for role, process in chosen.alive().items()},
        "elsewhere": {} if chosen.state in ENDED else {role: process.host for role, process in elsewhere.items()}}
    tail = failure or chosen.log(lines=lines)
    return Result(facts | {"failure": failure, "log": None if failure else tail},
                  f"{tables.facts(facts)}\n\n{tail}")


@verb(runs)
def stop(run: RunName) -> Result:
    """Stop a run: every rank saves its last whole step and exits; one that has ended stays as it is."""
    chosen = attach(run)
    chosen.stop()
    return Result(_facts(chosen) | {"checkpoints": chosen.saved_steps()})


@verb(runs)
def rm(run: RunName) -> Result:
    """Delete a run directory with its checkpoints; an error while the run is alive."""
    chosen = attach(run)
    chosen.remove()
    return Result({"removed": chosen.path})


@verb()
def doctor() -> Result:
    """Environment check: this machine, what is missing and how to get it; exit code 1 if the course can't run."""
    from tinylib.doctor import doctor

    checks = doctor()
    ok = all(check.state != "error" for check in checks)
    return Result({"ok": ok, "checks": checks},
                  "\n".join(f"{check.state:<8} {check.name:<10} {check.detail}" for check in checks), ok)


@verb()
def course(profile: str | None = None) -> Result:
    """Run the notebooks in order; writes the executed notebooks and a report.

    Args:
        profile: smoke, cpu or gpu; None takes what fits this machine
    """
    from tinylib.course import runner

    return Result(runner.run(profile), text="")    # it prints its own tables as it goes
