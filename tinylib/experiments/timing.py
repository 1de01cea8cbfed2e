"""Seconds of a training step of each arm on an idle machine; runs side by side slow each other."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from datetime import date
from importlib import metadata
from pathlib import Path

from tinylib import hardware
from tinylib.checks import UserError
from tinylib.experiments.description import Trial, describe
from tinylib.experiments.records import append, times_file
from tinylib.experiments.running import Source
from tinylib.rundir import Record, Step

STEPS, UNCOUNTED, ROUNDS = 16, 4, 3
BUSY = 20
"""Percent of all cores that other processes may use."""


def time_steps(name: str | Path, *, corpus: str | None = None) -> dict[str, float]:
    """Time the training steps of every arm, one thread, compiled or not as its runs are; seconds a step, by arm.

    The arms take turns, three rounds; an arm's time is the median over its rounds' medians.  Appends to the file beside
    the records.  Raises UserError if other processes are busy.
    """
    import psutil

    description = describe(name)
    busy = psutil.cpu_percent(interval=2)
    if busy > BUSY:
        raise UserError(f"other processes use {busy:.0f}% of the cores: time the steps when they use {BUSY}% or less")
    arms = {trial.base: trial for trial in description.trials() if trial.arm == trial.base}
    source = Source(description, corpus)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm, trial in arms.items():
            seconds[arm].append(_seconds(trial, source.shards(trial.config.model.vocab_size)))
    found = {arm: statistics.median(values) for arm, values in seconds.items()}
    for arm, median in found.items():
        append(times_file(description), {
            "arm": arm, "seconds": median, "rounds": seconds[arm], "threads": 1, "hardware": hardware.processor(),
            "torch": metadata.version("torch"), "date": date.today().isoformat()})
    return found


def _seconds(trial: Trial, shards: Path) -> float:
    """Median seconds of a step in a short run of its own."""
    import torch

    from tinylib.train import train

    steps: list[float] = []

    def keep(record: Record) -> None:
        steps.extend([record.dt_s] if isinstance(record, Step) else [])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            train(replace(trial.config, data=str(shards), run_dir=f"{folder}/run", steps=STEPS, save_every=None,
                          init_from=None, init_state=False), callback=keep)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(steps[UNCOUNTED:])
