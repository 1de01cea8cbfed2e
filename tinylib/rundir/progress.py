"""Progress of a run: its metrics read incrementally, as facts for one status line and as downsampled curves."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING, Any, TextIO

from tinylib.rundir.directory import RunDirectory
from tinylib.rundir.records import Eval, Header, Record, Step, Summary, from_line

if TYPE_CHECKING:
    import pandas as pd


class Progress:
    """The metrics of a run so far; each `read` parses only the lines that are new."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._restart(None)

    def _restart(self, file: int | None) -> None:
        self._file, self._read_bytes = file, 0
        self.header: Header | None = None
        self.recent: deque[Step] = deque(maxlen=10)
        self.evaluation: Eval | None = None
        self._losses: dict[int, float] = {}
        self._scores: dict[int, float] = {}

    def read(self) -> None:
        """Parse what was appended since the last call; everything where the file was replaced, as on resume."""
        try:
            with self.directory.metrics_file.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._read_bytes:
                    self._restart(found.st_ino)
                file.seek(self._read_bytes)
                for line in file:
                    if not line.endswith(b"\n"):    # it is still being written
                        break
                    self._read_bytes += len(line)
                    self._take(from_line(line))
        except FileNotFoundError:
            self._restart(None)

    def _take(self, record: Record) -> None:
        if isinstance(record, Header):
            self.header = record
        elif isinstance(record, Step):
            self.recent.append(record)
            self._losses[record.step] = record.loss
        elif isinstance(record, Eval):
            self.evaluation = record
            self._scores[record.step] = record.val_bpb

    def facts(self, state: str, steps: int, ranks: Sequence[dict[str, Any]] = ()) -> dict[str, str]:
        """State, step of `steps`, loss, speed, memory of the largest rank and time left, as text by name."""
        facts, last = {"state": state}, self.recent[-1] if self.recent else None
        if last:
            bar = "█" * round(20 * last.step / steps)
            facts |= {"step": f"step {last.step:,} of {steps:,} {bar:░<20}", "loss": f"loss {last.loss:.3f}"}
        if self.evaluation:
            facts["bits per byte"] = f"{self.evaluation.val_bpb:.3f} bits per byte"
        if last:
            facts |= {"speed": f"{median(step.tokens_per_s for step in self.recent):,.0f} tokens/s",
                      "MFU": "MFU n/a" if last.mfu is None else f"MFU {last.mfu:.1%}"}
        if ranks:
            facts["memory"] = f"{max(rank['memory_bytes'] for rank in ranks) / 1e9:.2f} GB"
        if last and state == "running":
            left_s = (steps - last.step) * median(step.dt_s for step in self.recent)
            facts["time left"] = f"{timedelta(seconds=round(left_s))} left"
        return facts

    def curves(self) -> tuple[pd.Series, pd.Series]:
        """Training loss and validation bits per byte, each indexed by step and downsampled to at most 500 points."""
        return downsampled(self._losses), downsampled(self._scores)


def downsampled(values: dict[int, float], most: int = 500) -> pd.Series:
    """A curve of at most `most` points: the mean of each few neighbors, at the last of their steps.

    Values that are not finite are left out.

    >>> downsampled({1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0, 5: 50.0}, most=3).to_dict()
    {2.0: 15.0, 4.0: 35.0, 5.0: 50.0}
    """
    import pandas as pd

    finite = [point for point in values.items() if math.isfinite(point[1])]
    points = pd.DataFrame(finite, columns=["step", "value"], dtype=float)
    width = max(1, math.ceil(len(points) / most))
    return points.groupby(points.index // width).agg({"step": "last", "value": "mean"}).set_index("step")["value"]


def progress_line(name: str, facts: dict[str, str]) -> str:
    """The facts of a run as one line."""
    return f"{name}: {'  '.join(facts.values())}"


class StatusLine:
    """A status line: rewritten in place on a terminal every half second, elsewhere printed anew every 10 seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self._width, self._due_s = 0, 0.0

    def show(self, text: Callable[[], str], last: bool = False) -> None:
        """Print what `text` returns, if that is due or it is the `last` one."""
        if time.monotonic() < self._due_s and not last:
            return
        line, in_place = text(), self.stream.isatty()
        if in_place:
            print(f"\r{line:<{self._width}}", end="\n" if last else "", file=self.stream, flush=True)
        else:
            print(line, file=self.stream, flush=True)
        self._width, self._due_s = len(line), time.monotonic() + (0.5 if in_place else 10.0)


def show_progress(directory: RunDirectory, steps: int, stream: TextIO | None = None) -> Callable[[Record], None]:
    """A callback for `train` that prints what the run runs on, then its status line."""
    progress, line = Progress(directory), StatusLine(stream)

    def show(record: Record) -> None:
        if isinstance(record, Header):
            print(f"{record.world_size} × {record.device}; {record.dtype}: {record.dtype_reason}; "
                  f"{record.compile_reason}", file=line.stream, flush=True)
            return
        last = isinstance(record, Summary)

        def text() -> str:
            progress.read()
            state, ranks = record.state if last else "running", directory.status().get("ranks", ())
            return progress_line(directory.name, progress.facts(state, steps, ranks))

        line.show(text, last)

    return show
