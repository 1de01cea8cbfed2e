"""The verb runs: which there are, what became of one, stop it, remove it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from tinylib import profiles
from tinylib.config import PRESETS, GPTConfig, from_dict
from tinylib.flags import parse, part
from tinylib.verbs import Result, show

if TYPE_CHECKING:
    from tinylib import launch


def runs(arguments: list[str]) -> Result:
    """the runs of this machine: state, step, loss, age; show, stop or rm RUN: look at one, stop it, remove it"""
    if not arguments or arguments[0].startswith("-"):
        return parse(_runs, arguments)
    return parse(part("runs", arguments, show=_runs_show, stop=_runs_stop, rm=_runs_rm), arguments[1:])


def _runs(folder: Path | None = None) -> Result:
    """The runs in FOLDER, by default those of every profile; `runs show RUN`, `runs stop RUN`, `runs rm RUN`."""
    import pandas as pd

    from tinylib import launch

    found = launch.runs(folder or profiles.home() / "runs")
    rows = [_facts(run) for run in found]
    show(pd.DataFrame(rows).fillna("")) if rows else print("no runs yet")
    return {"runs": rows}


def _facts(run: launch.Run) -> Result:
    step, evaluation = run.directory.last("step") or {}, run.directory.last("eval") or {}
    age_s = time.time() - run.directory.config.stat().st_mtime
    return {"run": f"{run.directory.path.parent.name}/{run.directory.name}", "state": run.state,
            "step": step.get("step"), "loss": step.get("loss"), "val_bpb": evaluation.get("val_bpb"),
            "age_min": round(age_s / 60, 1)}


def _runs_show(run: str, lines: int = 10) -> Result:
    """How RUN, a directory or the name of one, stands, what it trains, and the last LINES of its log or its failure."""
    from tinylib.launch import attach

    chosen = attach(run)
    directory, failure = chosen.directory, chosen.failure()
    written, last = directory.read_config(), directory.last("step") or {}
    train, spread = written["train"], written.get("launch", {})
    model = from_dict(GPTConfig, train["model"])
    result = {**_facts(chosen), "run": directory.path, "steps": train["steps"], "model": _name(model),
              **{name: train[name] for name in ("data", "total_batch_size", "device_batch_size")},
              "processes": written["world_size"],
              **{name: last.get(name) for name in ("grad_norm", "tokens_per_s", "mfu")},
              "checkpoints": directory.saved_steps(),
              "alive": {role: process.pid for role, process in directory.alive().items()},
              "elsewhere": {role: process.host for role, process in directory.remote_processes().items()
                            if chosen.state not in ("finished", "stopped")}}
    result |= {"join": chosen.join_command} if spread.get("most", 1) > 1 else {}
    show({name: value for name, value in result.items() if value not in (None, {}, [])})
    tail = failure or "\n".join(chosen.log().splitlines()[-lines:])
    print("", tail, sep="\n")
    return {**result, "failure": failure, "log": None if failure else tail}


def _name(model: GPTConfig) -> str:
    """The preset that a model is, but perhaps for its context; else its shape."""
    same = [name for name, preset in PRESETS.items() if (preset.depth, preset.dim, preset.vocab_size, preset.tied) ==
            (model.depth, model.dim, model.vocab_size, model.tied)]
    shape = f"depth {model.depth}, dim {model.dim}, vocabulary {model.vocab_size}{', tied' * model.tied}"
    return f"{same[0] if same else shape}, context {model.seq_len}"


def _runs_stop(run: str) -> Result:
    """Have RUN, a directory or the name of one, save its last whole step and end; one that has ended stays as it is."""
    from tinylib.launch import attach

    chosen = attach(run)
    chosen.stop()
    result = _facts(chosen) | {"checkpoints": chosen.directory.saved_steps()}
    show(result)
    return result


def _runs_rm(run: str) -> Result:
    """Delete the run directory RUN, with its checkpoints; refused while it still runs."""
    from tinylib.launch import attach

    chosen = attach(run)
    chosen.remove()
    result = {"removed": chosen.directory.path}
    show(result)
    return result
