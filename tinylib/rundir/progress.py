"""Progress of a run: its metrics read incrementally, as facts for one status line and as thinned curves."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from tinylib.rundir.directory import RunDirectory
from tinylib.rundir.records import Eval, Header, Record, Step, Summary, from_line

if TYPE_CHECKING:
    import pandas as pd


class Curve:
    """A curve downsampled to at most `most` points: when it is full, each two neighbors become their mean.

    >>> curve = Curve(most=4)
    >>> for step in range(1, 9):
    ...     curve.add(step, 10.0 * step)
    >>> curve.points
    [(2, 15.0, 2), (4, 35.0, 2), (6, 55.0, 2), (8, 75.0, 2)]
    """

    def __init__(self, most: int = 500) -> None:
        self.most, self.width = most, 1
        self.points: list[tuple[int, float, int]] = []
        """Last step, mean value, and number of steps, `width` of them but for the newest point."""

    def add(self, step: int, value: float) -> None:
        """Append the value of `step`; a value that is not finite is left out."""
        if not math.isfinite(value):
            return
        new = (step, value, 1)
        if self.points and self.points[-1][2] < self.width:
            new = _merged(self.points.pop(), new)
        elif len(self.points) == self.most:
            self.points = [_merged(*self.points[place:place + 2]) for place in range(0, self.most, 2)]
            self.width *= 2
        self.points.append(new)

    def series(self) -> pd.Series:
        """The values, indexed by step."""
        import pandas as pd

        return pd.Series([value for _, value, _ in self.points], [step for step, _, _ in self.points], dtype=float)


def _merged(first: tuple[int, float, int], *others: tuple[int, float, int]) -> tuple[int, float, int]:
    """Neighbors as one point with their weighted mean."""
    for step, value, count in others:
        total = first[2] + count
        first = (step, (first[1] * first[2] + value * count) / total, total)
    return first


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
        self.losses, self.scores = Curve(), Curve()

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
                    self.take(from_line(line))
        except FileNotFoundError:
            self._restart(None)

    def take(self, record: Record) -> None:
        """Add one record."""
        if isinstance(record, Header):
            self.header = record
        elif isinstance(record, Step):
            self.recent.append(record)
            self.losses.add(record.step, record.loss)
        elif isinstance(record, Eval):
            self.evaluation = record
            self.scores.add(record.step, record.val_bpb)

    def facts(self, state: str, steps: int, ranks: Sequence[dict[str, Any]] = ()) -> dict[str, str]:
        """State, step of `steps`, loss, speed, memory of the largest rank and time left, as text by name."""
        facts = {"state": state}
        if self.recent:
            last = self.recent[-1]
            facts |= {"step": f"step {last.step:,} of {steps:,} {_bar(last.step / steps)}",
                      "loss": f"loss {last.loss:.3f}"}
        if self.evaluation:
            facts["bits per byte"] = f"{self.evaluation.val_bpb:.3f} bits per byte"
        if self.recent:
            facts |= {"speed": f"{_median([step.tokens_per_s for step in self.recent]):,.0f} tokens/s",
                      "MFU": "MFU n/a" if last.mfu is None else f"MFU {last.mfu:.1%}"}
        if ranks:
            facts["memory"] = f"{max(rank['memory_bytes'] for rank in ranks) / 1e9:.2f} GB"
        if self.recent and state == "running":
            left_s = (steps - last.step) * _median([step.dt_s for step in self.recent])
            facts["time left"] = f"{clock(left_s)} left"
        return facts

    def curves(self) -> tuple[pd.Series, pd.Series]:
        """Training loss and validation bits per byte, each indexed by step, in at most some hundred points."""
        return self.losses.series(), self.scores.series()


def progress_line(name: str, facts: dict[str, str]) -> str:
    """The facts of a run as one line."""
    return "  ".join([f"{name}: {facts['state']}", *(text for fact, text in facts.items() if fact != "state")])


class StatusLine:
    """A status line: rewritten in place on a terminal, elsewhere printed anew every `every_s` seconds."""

    def __init__(self, stream: TextIO | None = None, every_s: float = 10.0) -> None:
        self.stream = stream or sys.stdout
        self.in_place = self.stream.isatty()
        self.every_s = 0.5 if self.in_place else every_s
        self._width, self._due_s = 0, 0.0

    def due(self) -> bool:
        """Whether the next `show` will print."""
        return time.monotonic() >= self._due_s

    def show(self, text: str, last: bool = False) -> None:
        """Print `text` if it is due, or if it is the `last` one."""
        if not (last or self.due()):
            return
        start, end = ("\r", "\n" if last else "") if self.in_place else ("", "\n")
        print(f"{start}{text:<{self._width}}" if self.in_place else text, end=end, file=self.stream, flush=True)
        self._width, self._due_s = len(text), time.monotonic() + self.every_s


def show_progress(directory: RunDirectory, steps: int, stream: TextIO | None = None) -> Callable[[Record], None]:
    """A callback for `train` that prints what the run runs on, then its status line."""
    progress, line = Progress(directory), StatusLine(stream)

    def show(record: Record) -> None:
        progress.take(record)
        if isinstance(record, Header):
            print(f"{record.world_size} × {record.device}; {record.dtype}: {record.dtype_reason}; "
                  f"{record.compile_reason}", file=line.stream, flush=True)
            return
        last = isinstance(record, Summary)
        if last or line.due():
            state, ranks = record.state if last else "running", directory.status().get("ranks", ())
            line.show(progress_line(directory.name, progress.facts(state, steps, ranks)), last)

    return show


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _bar(share: float, width: int = 20) -> str:
    """A text progress bar.

    >>> _bar(0.25, width=8)
    '██░░░░░░'
    """
    return "█" * round(share * width) + "░" * (width - round(share * width))


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(75), clock(3_675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
