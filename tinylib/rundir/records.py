"""Metric records of a run, one JSON line each in `metrics.jsonl`: Header, Step, Eval, Summary."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from time import time


@dataclass(frozen=True)
class Header:
    """Written at each start of a run: what it runs on and how."""

    step: int
    """Steps done before this start: 0, or that of the checkpoint it resumes from."""
    world_size: int
    """Number of processes."""
    accumulation: int
    """Micro-batches of one process in a step."""
    device: str
    """Name of the device of rank 0."""
    peak_flops: float | None
    """Peak FLOP/s of one device in bfloat16; None where no data sheet is known, so that MFU is None too."""
    dtype: str
    """Precision of the matrix products."""
    dtype_reason: str
    compiled: bool
    compile_reason: str
    time_s: float = field(default_factory=time)
    """Seconds since the epoch, in every record."""


@dataclass(frozen=True)
class Step:
    """One optimizer step over the whole global batch."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean cross-entropy in nats per target token."""
    lr_multiplier: float
    """Factor of all learning rates by the schedule, 0 to 1; 0 where float16 overflowed and the step was skipped."""
    grad_norm: float
    """L2 norm of the gradient of all parameters, before clipping."""
    dt_s: float
    """Wall-clock seconds of the step."""
    data_s: float
    """Of these, seconds that rank 0 waited for data."""
    tokens: int
    """Training tokens so far."""
    tokens_per_s: float
    mfu: float | None
    """Model FLOPs utilization, 0 to 1."""
    time_s: float = field(default_factory=time)


@dataclass(frozen=True)
class Eval:
    """One evaluation on the validation split."""

    step: int
    val_bpb: float
    """Bits per UTF-8 byte."""
    val_loss: float
    """Mean cross-entropy in nats per token."""
    time_s: float = field(default_factory=time)


@dataclass(frozen=True)
class Summary:
    """Result of a run; `state` is "finished", or "stopped" where a signal asked for it."""

    state: str
    step: int
    """Steps done."""
    train_loss: float | None
    """Mean training loss of the last tenth of the steps, in nats per token; None before the first step."""
    val_bpb: float | None
    """Bits per byte of the validation documents after the last step; None for a run that was stopped."""
    tokens: int
    """Training tokens seen."""
    tokens_per_s: float | None
    """Median over the steps since the last start; None without any."""
    seconds: float
    """Sum of the steps since the last start, without start-up and evaluation."""
    parameters: int
    peak_memory_bytes: int
    """Peak resident memory of rank 0, or of its GPU."""


Record = Header | Step | Eval | Summary
KINDS: dict[str, type[Record]] = {kind.__name__.lower(): kind for kind in (Header, Step, Eval, Summary)}


def to_line(record: Record) -> str:
    """The record as one line of JSON, with its kind.

    >>> to_line(Eval(step=3, val_bpb=1.5, val_loss=3.25, time_s=0.0))
    '{"kind": "eval", "step": 3, "val_bpb": 1.5, "val_loss": 3.25, "time_s": 0.0}\\n'
    """
    return json.dumps({"kind": type(record).__name__.lower(), **asdict(record)}) + "\n"


def from_line(line: str | bytes) -> Record:
    """The record in a line of JSON; a field that the line lacks is None, one that no record has is ignored.

    >>> record = Eval(step=3, val_bpb=1.5, val_loss=3.25, time_s=0.0)
    >>> from_line(to_line(record)) == record
    True
    """
    values = json.loads(line)
    kind = KINDS[values["kind"]]
    return kind(**{item.name: values.get(item.name) for item in fields(kind)})
