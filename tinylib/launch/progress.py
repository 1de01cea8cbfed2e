"""How a run looks while it goes on: what its metrics say so far, in words and as curves, updated in place."""

from __future__ import annotations

import base64
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tinylib.rundir import RunDirectory

if TYPE_CHECKING:
    import pandas as pd

FASTEST_S = 0.5
"""Seconds between two updates of what is shown, at least: a browser is not to be flooded."""


class Curve:
    """A curve that grows and never has more than `most` points: when it would, each two neighbours become their mean.

    >>> curve = Curve(most=4)
    >>> for step in range(1, 9):
    ...     curve.add(step, 10.0 * step)
    >>> curve.points
    [(2, 15.0, 2), (4, 35.0, 2), (6, 55.0, 2), (8, 75.0, 2)]
    """

    def __init__(self, most: int = 500) -> None:
        self.most, self.width = most, 1
        self.points: list[tuple[int, float, int]] = []
        """Last step, mean value, and over how many steps; of the newest point over `width` or fewer."""

    def add(self, step: int, value: float) -> None:
        """Go on to `step`; a value that is not finite leaves no trace."""
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
    """One point for neighbours."""
    for step, value, count in others:
        total = first[2] + count
        first = (step, (first[1] * first[2] + value * count) / total, total)
    return first


class Progress:
    """What the metrics of a run say so far: every line is read once, so looking again costs what is new."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self._forget(None)

    def _forget(self, file: int | None) -> None:
        self._file, self._read_bytes = file, 0
        self.header: dict[str, Any] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=10)
        self.evaluation: dict[str, Any] | None = None
        self.losses, self.scores = Curve(), Curve()

    def read(self) -> None:
        """Take in what was appended since the last time; all of it where another file came, as it does on resume."""
        try:
            with self.directory.metrics_file.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._read_bytes:
                    self._forget(found.st_ino)
                file.seek(self._read_bytes)
                for line in file:
                    if not line.endswith(b"\n"):    # it is being written
                        break
                    self._read_bytes += len(line)
                    self._take(json.loads(line))
        except FileNotFoundError:
            self._forget(None)

    def _take(self, record: dict[str, Any]) -> None:
        if record["kind"] == "header":
            self.header = record
        elif record["kind"] == "step":
            self.recent.append(record)
            self.losses.add(record["step"], record["loss"])
        elif record["kind"] == "eval":
            self.evaluation = record
            self.scores.add(record["step"], record["val_bpb"])

    def facts(self, state: str, ranks: Sequence[dict[str, Any]] = ()) -> dict[str, str]:
        """How the run stands, by name; memory is the peak of the largest of its `ranks`, as the status has them."""
        steps, lines = int(self.directory.read_config()["train"]["steps"]), {"state": state}
        if self.recent:
            last, rate = self.recent[-1], _middle([record["tokens_per_s"] for record in self.recent])
            lines |= {"step": f"step {last['step']:,} of {steps:,} {_bar(last['step'] / steps)}",
                      "loss": f"loss {last['loss']:.3f}"}
        if self.evaluation:
            lines["bits per byte"] = f"{self.evaluation['val_bpb']:.3f} bits per byte"
        if self.recent:
            lines |= {"speed": f"{rate:,.0f} tokens/s",
                      "MFU": "MFU n/a" if last["mfu"] is None else f"MFU {last['mfu']:.1%}"}
        if ranks:
            lines["memory"] = f"{max(rank['memory_bytes'] for rank in ranks) / 1e9:.2f} GB"
        if self.recent and state == "running":
            left_s = (steps - last["step"]) * _middle([record["dt_s"] for record in self.recent])
            lines["time left"] = f"{_clock(left_s)} left"
        return lines

    def curves(self) -> tuple[pd.Series, pd.Series]:
        """Training loss and bits per byte, each indexed by step, in some hundred points at most."""
        return self.losses.series(), self.scores.series()


def progress_line(name: str, facts: dict[str, str]) -> str:
    """How a run stands, in one line."""
    return "  ".join([f"{name}: {facts['state']}", *(text for fact, text in facts.items() if fact != "state")])


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _bar(share: float, width: int = 20) -> str:
    """A bar of text.

    >>> _bar(0.25, width=8)
    '██░░░░░░'
    """
    return "█" * round(share * width) + "░" * (width - round(share * width))


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(75), _clock(3_675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Slot:
    """A place in the outputs of a cell whose content is replaced; what is already there is not sent again."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.shown: dict[str, str] = {}

    def show(self, bundle: dict[str, str]) -> None:
        """Put `bundle`, texts by MIME type, into the place."""
        from IPython.display import display

        if bundle == self.shown:
            return
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
        self.shown = bundle


class Picture:
    """Curves that are drawn again when there is something new, but never for more than a tenth of the time."""

    def __init__(self, names: Sequence[str]) -> None:
        from tinylib.plots import LiveCurves  # it takes half a second to import, and a terminal needs none

        self._curves = LiveCurves(names)
        self._seen: list[Any] | None = None
        self._due_s = 0.0

    def bundle(self, runs: Sequence[Progress], now: bool = False) -> dict[str, str] | None:
        """A new picture of `runs`, for a Slot; None where there is none to show, or not yet again unless `now`."""
        seen = [(list(run.losses.points), list(run.scores.points)) for run in runs]
        if seen == self._seen or not any(losses or scores for losses, scores in seen):
            return None
        began_s = time.monotonic()
        if began_s < self._due_s and not now:
            return None
        png = self._curves.png([run.curves() for run in runs])
        self._seen, self._due_s = seen, began_s + 10 * (time.monotonic() - began_s)
        return {"image/png": base64.b64encode(png).decode(), "text/plain": "(curves of the training)"}


class Screen:
    """A run as it goes on: in a notebook a line and a picture, updated in place; in a terminal the line."""

    def __init__(self, name: str) -> None:
        self.name = name
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        self.notebook = hasattr(shell, "kernel")
        self.shown, self._due_s = "", 0.0
        self.slots = (Slot(), Slot())
        self.picture = Picture([name]) if self.notebook else None

    def show(self, progress: Progress, state: str, ranks: Sequence[dict[str, Any]] = (), last: bool = False) -> None:
        """Replace what is shown by how things stand now, at most twice a second; the `last` time by all there is."""
        wait_s = self._due_s - time.monotonic()
        if wait_s > 0 and not last:
            return
        time.sleep(max(0.0, wait_s))
        self._due_s = time.monotonic() + FASTEST_S
        progress.read()
        text = progress_line(self.name, progress.facts(state, ranks))
        if self.picture:
            self.slots[0].show({"text/plain": text})
            picture = self.picture.bundle([progress], now=last)
            if picture:
                self.slots[1].show(picture)
        elif text != self.shown:
            print(f"\r{text:<{len(self.shown)}}" if sys.stdout.isatty() else text,
                  end="" if sys.stdout.isatty() else "\n", flush=True)
        self.shown = text
