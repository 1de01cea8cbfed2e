"""How a run looks while it goes on: one line of text, updated in place."""

from __future__ import annotations

import sys
from typing import Any

from tinylib.rundir import RunDirectory


def progress_line(directory: RunDirectory, state: str) -> str:
    """State, step, loss, bits per byte, tokens per second and time left, in one line."""
    steps, recent = int(directory.read_config()["train"]["steps"]), directory.metrics().tail(10)
    parts, evaluation = [f"{directory.name}: {state}"], directory.last("eval")
    if len(recent):
        step = int(recent.index[-1])
        parts += [f"step {step:,} of {steps:,} {_bar(step / steps)}", f"loss {recent['loss'].iloc[-1]:.3f}"]
    if evaluation:
        parts += [f"{evaluation['val_bpb']:.3f} bits per byte"]
    if len(recent):
        parts += [f"{recent['tokens_per_s'].median():,.0f} tokens/s"]
        if state == "running":
            parts += [f"{_clock((steps - step) * recent['dt_s'].median())} left"]
    return "  ".join(parts)


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


class Screen:
    """One line of text that is updated in place: in a notebook by its display, in a terminal by a carriage return."""

    def __init__(self) -> None:
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython else None
        self.notebook = hasattr(shell, "kernel")
        self.handle: Any = None
        self.shown = ""

    def show(self, text: str) -> None:
        """Replace the line; a text that is already there is not sent again."""
        if text == self.shown:
            return
        if self.notebook:
            self._display(text)
        elif sys.stdout.isatty():
            print(f"\r{text:<{len(self.shown)}}", end="", flush=True)
        else:
            print(text, flush=True)
        self.shown = text

    def _display(self, text: str) -> None:
        from IPython.display import display

        bundle = {"text/plain": text}
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
