"""Live view of runs in a notebook: state, ranks and curves, with buttons to stop, to resume and to read the logs.

Panel and picture are ordinary outputs that are updated in place, so a saved notebook shows the last state to a reader
without a kernel.  The buttons below are widgets; where widgets can't run, panel and picture are the whole view.
"""

from __future__ import annotations

import base64
import html
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from tinylib.rundir import ENDED, Progress, StatusLine, progress_line

if TYPE_CHECKING:
    from tinylib.launch.run import Run

UPDATE_S = 0.5
"""Least seconds between two updates, so that a browser is not flooded."""
COLOURS = {"alive": "#009E73", "starting": "#E69F00", "ended": "#767676", "killed": "#D55E00"}
"""Dot of a rank by its state."""
SHOWN: WeakValueDictionary[tuple[Path, ...], View] = WeakValueDictionary()
"""The newest view of each group of runs; it closes the one before, as when a cell is run again."""


@dataclass(frozen=True)
class Snapshot:
    """One run at one moment, as its directory has it."""

    name: str
    state: str
    facts: dict[str, str]
    """State, step, loss, speed … as text; see `Progress.facts`."""
    ranks: tuple[tuple[str, ...], ...] = ()
    """Of each rank: number, state (a key of COLOURS), device, pid, memory, seconds of computing, a bar of these."""
    alive: bool = False
    """Whether a process of the run is alive, on this machine or another."""
    failure: str = ""

    @classmethod
    def take(cls, run: Run, progress: Progress) -> Snapshot:
        """Read the directory of `run`; `progress` holds what was read of its metrics before."""
        try:
            progress.read()
            config, status, state = run.read_config(), run.status(), run.state
            facts = progress.facts(state, config["train"]["steps"], status.get("ranks", ()))
            ranks = _rank_rows(run, state, status.get("world_size") or config["world_size"], status.get("ranks", ()),
                               progress.header.device if progress.header else "")
            return cls(run.name, state, facts, ranks, bool(run.alive() or run.remote_processes()),
                       _without_frames(run.failure() or ""))
        except FileNotFoundError:    # removed meanwhile
            return cls(run.name, "lost", {"state": f"there is no run at {run.path}"})

    def line(self) -> str:
        """Name and facts as one line."""
        return progress_line(self.name, self.facts)

    def text(self) -> str:
        """One line for the run, one for each rank, and the failure."""
        return "\n".join([self.line(), *(f"  {line}" for line in _aligned(self.ranks)),
                          *self.failure.splitlines()])

    def html(self) -> str:
        """The same in short lines, so that several runs fit side by side."""
        state, *facts = self.facts.values()
        lines = [f"<b>{html.escape(f'{self.name}: {state}')}</b>",
                 *(html.escape("  ".join(line)) for line in (facts[:1], facts[1:4], facts[4:]) if line)]
        lines += [f'<span style="color:{COLOURS[rank[1]]}">●</span> {html.escape(line)}'
                  for rank, line in zip(self.ranks, _aligned(self.ranks), strict=True)]
        return "\n".join([*lines, html.escape(self.failure)]).rstrip()


def _without_frames(failure: str, most: int = 12) -> str:
    """The rank and the error of a failure; `Run.failure` and the log have the stack frames."""
    first, *rest = failure.splitlines() or [""]
    frames = [number for number, line in enumerate(rest) if line.startswith("  ")]
    error = rest[frames[-1] + 1:] if frames else rest
    return "\n".join([first, *error[-most:]])


def _rank_rows(run: Run, state: str, world_size: int, work: Sequence[dict[str, Any]], device: str
               ) -> tuple[tuple[str, ...], ...]:
    """The rows of `Snapshot.ranks`; `work` is the status's list of ranks, `device` the name for ended ranks."""
    processes, remote = run.processes(), run.remote_processes()
    longest_s = max((rank["compute_s"] for rank in work), default=0.0) or 1.0
    rows = []
    for number in range(world_size):
        process, rank_state, pid = processes.get(f"rank{number}"), "ended" if state in ENDED else "starting", ""
        if process:
            rank_state = "killed" if process.gone() else "alive"
            pid = f"pid {process.pid}" + (f" on {process.host}" if f"rank{number}" in remote else "")
        own = ("", "", "")
        if number < len(work):
            compute_s, memory_bytes = work[number]["compute_s"], work[number]["memory_bytes"]
            own = (f"{memory_bytes / 1e9:.2f} GB", f"busy {compute_s:.3f} s", "█" * round(10 * compute_s / longest_s))
        rows.append((f"rank {number}", rank_state, process.devices if process else device, pid, *own))
    return tuple(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width).rstrip()
            for row in rows]


class View:
    """Live view of runs in the running cell; outside a notebook, status lines.

    `controls` are the buttons of each run; none where widgets can't run.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        self._progress = [Progress(run) for run in runs]
        self._outputs: list[Any] = []    # display handles of panel and picture; none outside a notebook
        self._panel: dict[str, str] = {}
        self._line, self._curves, self._drawn, self._due_s = StatusLine(), None, None, 0.0
        self._lock, self._closed = threading.Lock(), threading.Event()
        self.live = False
        """Whether a thread keeps the view up to date."""
        self.controls: list[Controls] = []
        ipython = sys.modules.get("IPython")
        if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
            self._display()

    def _display(self) -> None:
        """Make the outputs, which `update` fills, and the buttons."""
        from IPython.display import display

        key = tuple(run.path for run in self.runs)
        if key in SHOWN:
            SHOWN[key].close()
        SHOWN[key] = self
        self._outputs = [display({"text/plain": text}, raw=True, display_id=True) for text in ("", "(no step yet)")]
        # A kernel can't know whether a front end will answer, so a program that executes notebooks sets the variable.
        if os.environ.get("TINYLIB_WIDGETS") != "off":
            import ipywidgets

            self.controls = [Controls(run, self.follow) for run in self.runs]
            self.box = ipywidgets.VBox([control.box for control in self.controls])
            display(self.box._repr_mimebundle_() | {"text/plain": "(buttons, once this cell is run)"}, raw=True)

    def follow(self) -> None:
        """Update the view in a thread until the runs have ended; without widgets it stays as it is."""
        with self._lock:
            if self.controls and not self.live and not self._closed.is_set():
                self.live = True
                threading.Thread(target=self._keep_up, name="tinylib view", daemon=True).start()

    def close(self) -> None:
        """End the updates and remove the buttons; the last state stays, and so do the runs."""
        self._closed.set()
        if self.controls:
            self.box.close()

    def update(self, last: bool = False) -> bool:
        """Show the runs as they are now, `last` even if that is soon after the update before; whether any is alive."""
        snapshots = [Snapshot.take(run, progress) for run, progress in zip(self.runs, self._progress, strict=True)]
        with self._lock:
            if self._outputs:
                self._show_panel(snapshots)
                self._show_picture(now=last or all(snapshot.state in ENDED for snapshot in snapshots))
            else:
                for snapshot in snapshots:
                    self._line.show(snapshot.line, last)
            for control, snapshot in zip(self.controls, snapshots, strict=False):
                control.follow(snapshot)
        return any(snapshot.alive for snapshot in snapshots)

    def _keep_up(self) -> None:
        while True:
            busy = any(control.doing for control in self.controls)
            closed = self._closed.wait(UPDATE_S)
            alive = not closed and self.update()
            with self._lock:    # a button that is pressed after this starts another thread
                if closed or not (busy or alive or any(control.doing for control in self.controls)):
                    self.live = False
                    return

    def _show_panel(self, snapshots: Sequence[Snapshot]) -> None:
        look = "padding:0 22px 0 6px;border:0;text-align:left;vertical-align:top"
        cells = "".join(f'<td style="{look}"><pre style="margin:0;line-height:1.5">{snapshot.html()}</pre></td>'
                        for snapshot in snapshots)
        panel = {"text/html": f'<table style="margin:0;border-spacing:0"><tr>{cells}</tr></table>',
                 "text/plain": "\n".join(snapshot.text() for snapshot in snapshots)}
        if panel != self._panel:
            self._outputs[0].update(panel, raw=True)
            self._panel = panel

    def _show_picture(self, now: bool) -> None:
        """Draw the curves if they have changed; unless `now`, for a tenth of the time at most."""
        seen = [(list(progress.recent), progress.evaluation) for progress in self._progress]
        began_s = time.monotonic()
        if seen == self._drawn or not any(map(any, seen)) or (began_s < self._due_s and not now):
            return
        if self._curves is None:
            from tinylib.plots.training import LiveCurves

            self._curves = LiveCurves([run.name for run in self.runs])
        png = base64.b64encode(self._curves.png([progress.curves() for progress in self._progress])).decode()
        self._outputs[1].update({"image/png": png, "text/plain": "(curves of the training)"}, raw=True)
        self._drawn, self._due_s = seen, began_s + 10 * (time.monotonic() - began_s)


class Controls:
    """The buttons of one run; their actions run in threads, so that the kernel stays free."""

    def __init__(self, run: Run, follow: Callable[[], None]) -> None:
        """`follow` starts the updates of the view."""
        import ipywidgets as widgets

        self.run, self.doing, self._follow = run, "", follow
        narrow = {"layout": widgets.Layout(width="90px")}
        self.stop = widgets.Button(description="Stop", tooltip="save the last whole step and exit", **narrow)
        self.resume = widgets.Button(description="Resume", tooltip="go on from the newest checkpoint", **narrow)
        self.log = widgets.ToggleButton(description="Log", tooltip="end of a rank's output", **narrow)
        self.rank = widgets.Dropdown(layout=widgets.Layout(width="110px"))
        self.note, self.text = widgets.HTML(), widgets.HTML()
        row = [widgets.Label(run.name), self.stop, self.resume, self.log, self.rank, self.note]
        self.box = widgets.VBox([widgets.HBox(row), self.text])
        self.stop.on_click(lambda _: self._begin("stopping …", run.stop))
        self.resume.on_click(lambda _: self._begin("resuming …", run.resume))
        for control in (self.log, self.rank):
            control.observe(lambda _: self._show_log(), "value")
        self.stop.disabled = self.resume.disabled = True
        self._show_log()

    def follow(self, snapshot: Snapshot) -> None:
        """Enable the buttons that make sense in this state, and bring the log up to date."""
        state, alive = snapshot.state, snapshot.alive
        self.stop.disabled = bool(self.doing) or not alive or state in ("finished", "stopped")
        self.resume.disabled = bool(self.doing) or alive or state not in ("stopped", "failed", "lost")
        options = (*(rank[0] for rank in snapshot.ranks), "torchrun")
        if self.rank.options != options:
            chosen, self.rank.options = self.rank.value, options
            self.rank.value = chosen if chosen in options else options[0]
        self._show_log()

    def _begin(self, words: str, action: Callable[[], Any]) -> None:
        def act() -> None:
            error = ""
            try:
                action()
            except Exception as raised:    # an exception in a thread would go unseen
                error = str(raised)
            self.doing, self.note.value = "", html.escape(error)

        self.doing = self.note.value = words
        self.stop.disabled = self.resume.disabled = True
        threading.Thread(target=act, name=words, daemon=True).start()
        self._follow()

    def _show_log(self) -> None:
        self.rank.layout.display = "" if self.log.value else "none"
        if not self.log.value:
            self.text.value = ""
            return
        number = (self.rank.value or "torchrun").removeprefix("rank ")
        text = self.run.log(int(number) if number.isdigit() else None, lines=40)[-8_000:] or "nothing was printed yet"
        self.text.value = ('<pre style="line-height:1.3;max-height:20em;overflow:auto;margin:0">'
                           f"{html.escape(text)}</pre>")
