"""Verbs that train a model and use what was trained: train, tie, export, import."""

from __future__ import annotations

import dataclasses
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tinylib.checks import UserError
from tinylib.cli import tables
from tinylib.cli.verbs import Flags, Result, RunName, verb
from tinylib.config import DeviceKind, TieMethod, TrainConfig
from tinylib.launch import write_slurm
from tinylib.profiles import profile
from tinylib.rundir import Eval, RunDirectory, find_run, show_progress
from tinylib.shards import Shards


@verb()
def train(config: Flags[TrainConfig], resume: bool = False, slurm: Path | None = None, nnodes: int = 1,
          nproc_per_node: int = 1) -> Result | None:
    """Train a model, in this process or as one rank of torchrun.

    Args:
        resume: continue from the newest checkpoint
        slurm: write a batch file for Slurm here, and train nothing
        nnodes: machines, with --slurm
        nproc_per_node: processes on each machine, with --slurm
    """
    if slurm:
        text, facts = write_slurm(config, slurm, nproc_per_node, nnodes), {"slurm": slurm, "run_dir": config.run_dir}
        facts["submit"] = f"sbatch {slurm}"
        return Result(facts, f"{text}\n{tables.facts(facts)}")
    if (nnodes, nproc_per_node) != (1, 1):
        raise UserError("nnodes and nproc_per_node go with --slurm FILE: without it start the processes with torchrun")
    run, rank = RunDirectory(config.run_dir), int(os.environ.get("RANK", "0"))
    if os.environ.get("TINYLIB_LAUNCHED") == "1":
        _redirect(run, rank)
    # Read when torch loads.  A thread that spins while it waits for another burns the time in which that one could run;
    # 1000 turns are what libgomp itself takes where there are more threads than cores.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from tinylib.train import train as start

    progress = None if rank else show_progress(run, config.steps, sys.stderr)
    summary = start(config, resume=resume, callback=progress)
    return None if rank else Result(dataclasses.asdict(summary))


def _redirect(run: RunDirectory, rank: int) -> None:
    """Redirect stdout and stderr of this rank, file descriptors 1 and 2, to its own log."""
    log = run.log_file(rank)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


@verb()
def tie(run: RunName, output: Path | None = None, untie: bool = False, method: TieMethod = "least-change",
        steps: int = 0, max_tokens: int = 65_536, device: DeviceKind = "auto") -> Result:
    """Tie the two tables of a run's newest checkpoint, or untie them, as a new run; train that on if asked.

    Args:
        output: run directory to write; None adds "-tied" or "-untied" to the run's
        untie: make two tables of one
        method: least change of logits and normed embeddings, the mean of both tables, or one of them
        steps: steps of a run of its own, OUTPUT-trained, that starts from it with a schedule of its own
        max_tokens: validation tokens to evaluate on
    """
    from tinylib.checkpoint import load_model
    from tinylib.evaluate import Score, score
    from tinylib.hardware import device as find_device
    from tinylib.train import train as start
    from tinylib.tying import write_run

    def evaluated(checkpoint: Path) -> Score:
        return score(load_model(checkpoint, find_device(device).kind), held_out, max_tokens=max_tokens)

    source, last = find_run(run), f"-{'untied' if untie else 'tied'}"
    made = RunDirectory(output or source.path.with_name(source.path.name + last))
    trained = RunDirectory(made.path.with_name(f"{made.name}-trained"))
    _raise_if_taken(made, *[trained] * (steps > 0))
    held_out = Shards(source.read_config()["train"]["data"], "val")
    config, step = write_run(source, made, None if untie else method, held_out)
    before, after = evaluated(source.checkpoint(step)), evaluated(made.checkpoint())
    made.append(Eval(step, after.bits_per_byte, after.loss))
    facts = {"run": made.path, "step": step, "method": None if untie else method, "tokens": after.tokens,
             "before_bits_per_byte": before.bits_per_byte, "after_bits_per_byte": after.bits_per_byte}
    if steps:
        config = dataclasses.replace(config, run_dir=str(trained.path), init_from=str(made.checkpoint()),
                                     init_state=False, steps=steps, device=device)
        start(config, callback=show_progress(trained, config.steps, sys.stderr))
        facts |= {"trained_run": trained.path, "trained_bits_per_byte": evaluated(trained.checkpoint()).bits_per_byte}
    return Result(facts)


@verb()
def export(run: RunName, out: Path, format: Literal["transformers", "mlx"] = "transformers") -> Result:
    """Write a run's newest checkpoint as a folder for another library, load it there, and compare the two.

    Args:
        out: folder to write
        format: library that is to load it; mlx is mlx-lm's
    """
    from tinylib.checkpoint import read_model_config
    from tinylib.export import audit, export_mlx, export_transformers

    checkpoint = find_run(run).checkpoint()
    written = (export_mlx if format == "mlx" else export_transformers)(checkpoint, out)
    twice = read_model_config(checkpoint).tied and format == "mlx"
    facts = {"checkpoint": checkpoint, "out": written, **({"tied_table": "written twice"} if twice else {})}
    if format == "mlx" and find_spec("mlx_lm") is None:
        return Result(facts | {"compared": "nothing, because mlx-lm is not installed"})
    return Result(facts | audit(checkpoint, written))


@verb(name="import")
def import_(folder: Path, output: Path | None = None, data: Path | None = None) -> Result:
    """Make a run of a folder that export wrote.

    Args:
        folder: folder with config.json, model.safetensors and tokenizer.json
        output: run directory to write; None takes the folder's name, in the profile's runs
        data: shards made with its tokenizer, to evaluate on and to tie with; None takes the profile's
    """
    from tinylib.checkpoint import read_model_config
    from tinylib.export import import_run

    run = RunDirectory(output or profile().runs / folder.resolve().name)
    made = import_run(folder, run, str(data or profile().shards))
    return Result({"run": run.path, "checkpoint": made.name, **dataclasses.asdict(read_model_config(made))})


def _raise_if_taken(*runs: RunDirectory) -> None:
    for run in runs:
        if run.path.exists():
            raise FileExistsError(f"output={str(run.path)!r} is taken: choose another with --output, or remove it")
