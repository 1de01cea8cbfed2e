"""Runs live in a notebook, side by side: how they stand, what each rank does, the curves, and buttons.

A panel and a picture are outputs that are updated in place: the notebook stores them, so without a kernel they show
the last state.  Below them are widgets, the buttons; where these can't run, panel and picture are all there is.
"""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from tinylib import checks
from tinylib.course.explorer import ipywidgets_or_none
from tinylib.course.panel import words
from tinylib.launch import Run
from tinylib.launch.progress import FASTEST_S, Picture, Progress, Slot
from tinylib.rundir import ENDED
from tinylib.widgets.standing import Standing, look, standing_html, standing_text

LOG_BYTES, LOG_LINES = 8_000, 40
"""What of the end of a log is shown, at most."""


def dashboard(run: Run, *more_runs: Run, every_s: float = 1.0) -> Dashboard:
    """A live view of one or more runs with buttons to stop, to resume and to read the logs.

    It is updated every `every_s` seconds, at most twice a second, by a thread that ends with the runs, with `close()`,
    or when the same runs are shown anew.  Where widgets can't run, or $TINYLIB_WIDGETS is "off", it has no buttons;
    outside a notebook it shows how the runs stand and stays so.  Raises ConfigError for what is no Run.
    """
    runs = (run, *more_runs)
    checks.raise_if("dashboard", [*(None if isinstance(one, Run) else f"run={one!r} is not a Run: use launch(...) or "
                                 "attach(path)" for one in runs), checks.check_float("every_s", every_s, 0, above=True)])
    return Dashboard(runs, max(FASTEST_S, every_s))


class Dashboard:
    """Runs in view: `controls` are the buttons of each of them (none where widgets can't run)."""

    def __init__(self, runs: tuple[Run, ...], every_s: float) -> None:
        self.runs, self.every_s = runs, every_s
        self._progress = [Progress(run.directory) for run in runs]
        self._panel, self._curves = Slot(), Slot()
        self._picture: Picture | None = None
        self._thread: threading.Thread | None = None
        self._turn, self._closed, self._asked = threading.Lock(), threading.Event(), False
        widgets = ipywidgets_or_none()
        self.controls = [Controls(widgets, run, self.start) for run in runs] if widgets else []
        self.box = widgets.VBox([control.box for control in self.controls]) if widgets else None

    @property
    def live(self) -> bool:
        """Whether a thread keeps the view up to date."""
        return self._thread is not None

    def close(self) -> None:
        """End the updates and take the buttons away; the last state stays, and so do the runs."""
        self._closed.set()
        if self.box is not None:
            self.box.close()

    def _look(self) -> list[Standing]:
        return [look(run, progress) for run, progress in zip(self.runs, self._progress, strict=True)]

    def _show(self, standings: list[Standing], last: bool) -> None:
        """Put panel, picture and buttons as the runs stand."""
        with self._turn:
            self._panel.show(_faces(standings))
            self._picture = self._picture or Picture([run.directory.name for run in self.runs])
            ended = all(standing.state in ENDED for standing in standings)
            picture = self._picture.bundle(self._progress, now=last or ended)
            if picture or self._curves.handle is None:    # a place that a thread makes later would be in no cell
                self._curves.show(picture or {"text/plain": "(no step yet)"})
            for control, standing in zip(self.controls, standings, strict=False):
                control.follow(standing)

    def start(self) -> None:
        """Keep up with the runs from now on, until they end; to show the view does this by itself."""
        with self._turn:
            self._asked = True
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._keep_up, name="dashboard", daemon=True)
                self._thread.start()

    def _keep_up(self) -> None:
        over = False
        while not over:
            self._asked = False
            over = self._closed.wait(self.every_s) or self._is_box_closed()
            if not over:
                busy = any(control.doing for control in self.controls)
                standings = self._look()
                over = not (busy or any(standing.alive for standing in standings))
                self._show(standings, last=over)
            with self._turn:    # who asks from here on starts another thread
                over = over and (not self._asked or self._closed.is_set())
                self._thread = None if over else self._thread

    def _is_box_closed(self) -> bool:
        """Whether someone closed the box of buttons itself."""
        return self.box is not None and self.box.comm is None

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """How the runs stand, as IPython asks for it."""
        return _faces(self._look())

    def _ipython_display_(self) -> None:
        """Show panel and picture and, where widgets run, the buttons; then keep up, in a notebook."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        if not hasattr(get_ipython(), "kernel"):
            display(self._repr_mimebundle_(), raw=True)
            return
        with self._turn:
            self._panel, self._curves, self._picture = Slot(), Slot(), None
        self._show(self._look(), last=True)
        earlier = _SHOWN.get(_key(self.runs))
        if earlier is not None and earlier is not self:
            earlier.close()
        _SHOWN[_key(self.runs)] = self
        if self.box is not None:
            display(self.box._repr_mimebundle_() | {"text/plain": "(buttons, once this cell is run)"}, raw=True)
        self.start()

    def __repr__(self) -> str:
        return standing_text(self._look())


_SHOWN: WeakValueDictionary[tuple[Path, ...], Dashboard] = WeakValueDictionary()
"""Views that were shown: a cell that is run again must not leave the thread of its earlier view behind."""


def _key(runs: tuple[Run, ...]) -> tuple[Path, ...]:
    return tuple(run.directory.path for run in runs)


def _faces(standings: list[Standing]) -> dict[str, str]:
    return {"text/html": standing_html(standings), "text/plain": standing_text(standings)}


class Controls:
    """The buttons of one run; what they start runs in a thread, so that the kernel stays free."""

    def __init__(self, widgets: Any, run: Run, after: Callable[[], None]) -> None:
        """`after` is called when something that a button began is done."""
        self.run, self.doing, self._after = run, "", after
        narrow = {"layout": widgets.Layout(width="90px")}
        self.stop = widgets.Button(description="Stop", tooltip="save the last whole step and leave", **narrow)
        self.resume = widgets.Button(description="Resume", tooltip="go on from the newest checkpoint", **narrow)
        self.log = widgets.ToggleButton(description="Log", tooltip="the end of what a rank printed", **narrow)
        self.rank = widgets.Dropdown(layout=widgets.Layout(width="110px"))
        self.note, self.text = widgets.HTML(), widgets.HTML()
        row = [widgets.Label(run.directory.name), self.stop, self.resume, self.log, self.rank, self.note]
        self.box = widgets.VBox([widgets.HBox(row), self.text])
        self.stop.on_click(lambda _: self._begin("stopping …", run.stop))
        self.resume.on_click(lambda _: self._begin("resuming …", run.resume))
        for control in (self.log, self.rank):
            control.observe(lambda _: self._show_log(), "value")
        self.stop.disabled = self.resume.disabled = True
        self._show_log()

    def follow(self, standing: Standing) -> None:
        """Enable what makes sense as the run stands, and bring the log up to date."""
        self.stop.disabled = bool(self.doing) or not standing.alive or standing.state in ("finished", "stopped")
        self.resume.disabled = bool(self.doing) or standing.alive or standing.state not in ("stopped", "failed", "lost")
        options = (*(f"rank {rank.number}" for rank in standing.ranks), "torchrun")
        if self.rank.options != options:
            chosen = self.rank.value if self.rank.value in options else options[0]
            self.rank.options = options
            self.rank.value = chosen
        self._show_log()

    def _begin(self, words_for_it: str, action: Callable[[], Any]) -> None:
        self.doing = self.note.value = words_for_it
        self.stop.disabled = self.resume.disabled = True
        threading.Thread(target=self._do, args=(action,), name=words_for_it, daemon=True).start()

    def _do(self, action: Callable[[], Any]) -> None:
        said = ""
        try:
            action()
        except Exception as error:    # nobody sees what a thread raises
            said = words(*str(error).splitlines())
        self.doing, self.note.value = "", said
        self._after()

    def _show_log(self) -> None:
        directory, chosen = self.run.directory, self.rank.value
        self.rank.layout.display = "" if self.log.value else "none"
        ranks = {f"rank {number}": directory.log_file(number) for number in range(len(self.rank.options))}
        text = log_end(ranks.get(chosen, directory.agent_log)) if self.log.value else ""
        self.text.value = text and ('<pre style="line-height:1.3;max-height:20em;overflow:auto;margin:0">'
                                    f"{html.escape(text)}</pre>")


def log_end(path: Path) -> str:
    """The last lines of a log, read from its end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            found = file.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "nothing was printed yet"
    return "\n".join(found[1 if size > LOG_BYTES else 0:][-LOG_LINES:]) or "nothing was printed yet"
