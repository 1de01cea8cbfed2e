"""Recorder of a training run: step times, metric records, status and event files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tinylib import sizing
from tinylib.config import TrainConfig
from tinylib.rundir import Header, Record, RunDirectory, State, Step, Summary

Callback = Callable[[Record], None]


class Recorder:
    """Writes what happens in a run; on ranks other than 0 it only keeps it, and calls the callback."""

    header: Header

    def __init__(self, directory: RunDirectory, config: TrainConfig, rank: int, world_size: int,
                 callback: Callback | None = None) -> None:
        self.ranks: list[dict[str, float]] = []
        """Of each rank, at the last step: seconds of its own work, before it waits for the others, and peak memory."""
        self.losses: list[float] = []
        self.write_event: Callback = lambda record: None
        self._directory, self._config, self._writes = directory, config, rank == 0
        self._world_size, self._callback = world_size, callback
        self._step_s: list[float] = []
        self._began_s = time.perf_counter()
        self._written: tuple[State | None, float] = None, 0.0

    def append(self, record: Record) -> None:
        """Append a record to the metrics and event files, then pass it to the callback."""
        if self._writes:
            self._directory.append(record)
        self.write_event(record)
        if self._callback:
            self._callback(record)

    def status(self, state: State, step: int, **facts: Any) -> None:
        """Write the status, at most once a second while the state stays the same."""
        now_s = time.monotonic()
        if self._writes and (state != self._written[0] or now_s - self._written[1] > 1):
            self._written = state, now_s
            self._directory.write_status(state, step=step, steps=self._config.steps, world_size=self._world_size,
                                         ranks=self.ranks, **facts)

    def start_clock(self) -> None:
        """Begin the time of the next step now: saving and evaluating belong to none."""
        self._began_s = time.perf_counter()

    def step(self, step: int, loss: float, multiplier: float, norm: float, data_s: float) -> None:
        """Append the record of a step that is done; it took the time since the one before."""
        now_s = time.perf_counter()
        dt_s, self._began_s = now_s - self._began_s, now_s
        self.losses.append(loss)
        self._step_s.append(dt_s)
        tokens, peak = self._config.total_batch_size, self.header.peak_flops
        model_flops = sizing.flops_per_token(self._config.model) * tokens / dt_s
        mfu = None if peak is None else model_flops / (peak * self._world_size)
        self.append(Step(step, loss, multiplier, norm, dt_s, data_s, step * tokens, tokens / dt_s, mfu))
        self.status("running", step)

    def end(self, state: State, step: int, val_bpb: float | None, parameters: int, peak_memory_bytes: int) -> Summary:
        """Append the summary and write the last status."""
        tail, tokens = self.losses[-max(1, len(self.losses) // 10):], self._config.total_batch_size
        median_s = sorted(self._step_s)[len(self._step_s) // 2] if self._step_s else None
        summary = Summary(state, step, sum(tail) / len(tail) if tail else None, val_bpb, step * tokens,
                          tokens / median_s if median_s else None, sum(self._step_s), parameters, peak_memory_bytes)
        self.append(summary)
        self.status(state, step, val_bpb=val_bpb)
        return summary
