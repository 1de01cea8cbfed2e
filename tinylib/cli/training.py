"""Verbs that train a model and use what was trained: train, eval, sample, tie, export."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tinylib.checks import UserError
from tinylib.cli import tables
from tinylib.cli.verbs import Flags, Result, RunName, verb
from tinylib.config import DeviceKind, TieMethod, TrainConfig
from tinylib.launch import attach, write_slurm
from tinylib.profiles import home
from tinylib.rundir import Eval, RunDirectory, find_run, show_progress
from tinylib.shards import Shards
from tinylib.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tinylib.model import GPT
    from tinylib.tasks import Task


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


@verb(name="eval")
def evaluate(run: RunName, split: str = "val", max_tokens: int | None = None, batch_size: int = 8,
             device: DeviceKind = "auto", core: Path | None = None, fetch: bool = False, pairs: Path | None = None,
             suite: bool = False, max_per_task: int | None = None) -> Result:
    """Bits per byte of a run's newest checkpoint; or CORE, minimal pairs, or tasks made of the validation text.

    Args:
        split: split of the shards that the run was trained on
        max_tokens: most tokens to evaluate
        batch_size: sequences at once
        core: folder of CORE's tasks, an eval_bundle: score these
        fetch: download that folder, and score it
        pairs: folder of minimal pairs as BLiMP has them: score these
        suite: make three tasks of the run's validation text, and score these
        max_per_task: items of each task; None takes all, of a suite 200
    """
    from tinylib import tasks
    from tinylib.evaluate import score, unused_probability

    found = attach(run)
    checkpoint, model = found.checkpoint(), found.model(device)
    shards, tokenizer = Shards(found.read_config()["train"]["data"], split), Tokenizer.load(checkpoint / "tokenizer")
    if core or fetch or pairs or suite:
        bundle = tasks.fetch_bundle(core or home() / "data" / "eval_bundle") if fetch else core
        chosen = {"core": bundle and tasks.core(bundle, max_per_task),
                  "pairs": pairs and tasks.minimal_pairs(pairs, max_per_task),
                  "suite": tasks.suite(shards.texts(), max_per_task or 200) if suite else None}
        return _benchmarks(found, model, tokenizer, {name: some for name, some in chosen.items() if some})
    shards.check_tokenizer(tokenizer.fingerprint, str(checkpoint / "tokenizer"))
    scored = score(model, shards, max_tokens=max_tokens, batch_size=batch_size)
    facts = {"run": found.path, "checkpoint": checkpoint.name, "split": split,
             "bits_per_byte": scored.bits_per_byte, "tokens": scored.tokens}
    if model.config.vocab_size > shards.vocab_size:
        facts["unused_ids_probability"] = unused_probability(model, shards)
    return Result(facts)


@verb()
def sample(run: RunName, prompt: str = "", max_tokens: int = 200, temperature: float = 0.8, top_k: int | None = 50,
           seed: int = 0, device: DeviceKind = "auto") -> Result:
    """Text generated by a run's newest checkpoint, streamed.

    Args:
        prompt: text to continue
        max_tokens: most tokens to generate
        temperature: 0 takes the likeliest token each time
        top_k: sample from so many of the likeliest tokens; None from all
    """
    from tinylib.generate import generate

    found, written = attach(run), []
    model, tokenizer = found.model(device), Tokenizer.load(found.checkpoint() / "tokenizer")
    print(prompt, end="")
    for piece in generate(model, tokenizer, prompt, max_tokens=max_tokens, temperature=temperature, top_k=top_k,
                          seed=seed):
        print(piece, end="", flush=True)
        written.append(piece)
    print()
    return Result({"run": found.path, "prompt": prompt, "text": "".join(written), "seed": seed}, text="")


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
def export(run: RunName, out: Path) -> Result:
    """Write a run's newest checkpoint as a folder that transformers loads.

    Args:
        out: folder to write
    """
    from tinylib.export import export_transformers

    checkpoint = find_run(run).checkpoint()
    return Result({"checkpoint": checkpoint, "out": export_transformers(checkpoint, out)})


def _benchmarks(run: RunDirectory, model: GPT, tokenizer: Tokenizer, chosen: Mapping[str, Iterable[Task]]) -> Result:
    """A table of tasks with chance and intervals, and the mean of each benchmark."""
    from tinylib import tasks

    facts, blocks = {}, []
    for name, some in chosen.items():
        table = tasks.evaluate(model, tokenizer, some)
        if table.empty:
            raise UserError(f"nothing of {name} could be scored: {table.attrs['skipped']}")
        mean, low, high = tasks.mean_centered(table)
        skipped = "".join(f"\nskipped {task}: {why}" for task, why in table.attrs["skipped"].items())
        facts[name] = {"centered": mean, "low": low, "high": high, "skipped": table.attrs["skipped"],
                       "tasks": table.reset_index(names="task").to_dict("records")}
        blocks.append(f"{table.to_string(float_format='{:.3f}'.format)}{skipped}\n\n{name}: mean of centered accuracy "
                      f"{mean:.4f}, 95 % interval {low:.4f} to {high:.4f}")
    return Result({"run": run.path, "checkpoint": run.checkpoint().name} | facts, "\n\n".join(blocks))


def _raise_if_taken(*runs: RunDirectory) -> None:
    for run in runs:
        if run.path.exists():
            raise FileExistsError(f"output={str(run.path)!r} is taken: choose another with --output, or remove it")
