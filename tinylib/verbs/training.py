"""Verbs of a run and what comes of it: train, eval, sample, export."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from tinylib.config import TrainConfig
from tinylib.flags import parse, taken, train_config
from tinylib.verbs import Result, show


def train(arguments: list[str]) -> Result | None:
    """train a model, in this process or as one rank of torchrun; --resume goes on; --slurm FILE writes a batch file"""
    named, rest = taken(arguments, "--slurm", "--nnodes", "--nproc-per-node", flags=("--resume",))
    config = train_config(rest)
    if named["slurm"]:
        return _slurm(config, Path(named["slurm"]), named["nproc_per_node"] or "1", named["nnodes"] or "1")
    if named["nnodes"] or named["nproc_per_node"]:
        raise ValueError("nnodes and nproc_per_node go with --slurm FILE: else use torchrun, or launch in a notebook")
    if os.environ.get("TINYLIB_LAUNCHED") == "1":
        _redirect(config.run_dir)
    from tinylib.train import train as run

    from tinylib.rundir import RunDirectory, show_progress

    rank = int(os.environ.get("RANK", "0"))
    progress = show_progress(RunDirectory(config.run_dir), config.steps, sys.stderr) if rank == 0 else None
    summary = run(config, resume=named["resume"], callback=progress)
    if int(os.environ.get("RANK", "0")) != 0:
        return None
    result = dataclasses.asdict(summary)
    show(result)
    return result


def _slurm(config: TrainConfig, file: Path, nproc_per_node: str, nnodes: str) -> Result:
    """Write the batch file, and the run directory that its processes read the configuration from."""
    from tinylib.launch import write_slurm

    text = write_slurm(config, file, int(nproc_per_node) if nproc_per_node.isdigit() else nproc_per_node, nnodes)
    print(text)
    result = {"slurm": file, "run": config.run_dir, "submit": f"sbatch {file}"}
    show(result)
    return result


def _redirect(folder: str) -> None:
    """Send what this rank prints, by whatever means, to its own log."""
    from tinylib.rundir import RunDirectory

    log = RunDirectory(folder).log_file(int(os.environ.get("RANK", "0")))
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def evaluate(arguments: list[str]) -> Result:
    """bits per byte of a run's newest checkpoint on held-out documents"""
    return parse(_eval, arguments)


def _eval(run: str, split: str = "val", max_tokens: int | None = None, batch_size: int = 8) -> Result:
    """Bits per byte of the newest checkpoint of RUN, a run directory or the name of one."""
    from tinylib.evaluate import score
    from tinylib.launch import attach
    from tinylib.shards import Shards

    chosen = attach(run)
    shards = Shards(chosen.directory.read_config()["train"]["data"], split)
    found = score(chosen.model(), shards, max_tokens=max_tokens, batch_size=batch_size)
    result = {"run": chosen.directory.path, "checkpoint": chosen.directory.checkpoint().name, "split": split,
              "bits_per_byte": found.bits_per_byte, "tokens": found.tokens}
    show(result)
    return result


def sample(arguments: list[str]) -> Result:
    """text that a run's newest checkpoint writes"""
    return parse(_sample, arguments)


def _sample(run: str, prompt: str = "", max_tokens: int = 200, temperature: float = 0.8, top_k: int | None = 50,
            seed: int = 0) -> Result:
    """Continue the prompt with the newest checkpoint of RUN, a run directory or the name of one."""
    from tinylib.generate import generate
    from tinylib.launch import attach
    from tinylib.tokenizer import Tokenizer

    chosen = attach(run)
    tokenizer = Tokenizer.load(chosen.directory.checkpoint() / "tokenizer")
    written = []
    print(prompt, end="")
    for piece in generate(chosen.model(), tokenizer, prompt, max_tokens=max_tokens, temperature=temperature,
                          top_k=top_k, seed=seed):
        print(piece, end="", flush=True)
        written.append(piece)
    print()
    return {"run": chosen.directory.path, "prompt": prompt, "text": "".join(written), "seed": seed}


def export(arguments: list[str]) -> Result:
    """a run's newest checkpoint as a folder that transformers loads"""
    return parse(_export, arguments)


def _export(run: str, out: Path) -> Result:
    """Write the newest checkpoint of RUN, a run directory or the name of one, for transformers into the folder OUT."""
    from tinylib.export import export_transformers
    from tinylib.launch import attach

    checkpoint = attach(run).directory.checkpoint()
    result = {"checkpoint": checkpoint, "out": export_transformers(checkpoint, out)}
    show(result)
    return result
