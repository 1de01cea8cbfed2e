"""Explorer: ipywidgets sliders for a shape, with a live panel of what it holds and costs.

A cell has two outputs: widgets, and a static panel that the notebook stores.  Live widgets hide the static panel by a
style; without a kernel, on a web page or in a terminal there is no style, so the static panel shows.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tinylib import checks, profiles, sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig, preset_name
from tinylib.course.panel import figures, panel_html, panel_text, words
from tinylib.hardware import ACCELERATORS

FIELDS = ("depth", "dim", "head_dim", "vocab_size", "tied", "seq_len")
"""Fields of a configuration that the controls of the same names set."""
HEAD_DIMS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256)
WIDEST, DEEPEST = 4096, 64
"""Ends of the sliders; a configuration beyond one extends it."""


def explore(config: GPTConfig | None = None, device: str = "H100", nproc_per_node: int = 1) -> Explorer:
    """Sliders for a shape, and live what it holds, costs and takes to train on `nproc_per_node` devices.

    `config` is the start (None: goldilocks).  With $TINYLIB_WIDGETS "off" the static panel is shown.  Raises
    ConfigError for a `config` that is no GPTConfig, or a device that is not in ACCELERATORS.

    >>> explore(PRESETS["micro"]).config.dim
    128
    """
    config = PRESETS["goldilocks"] if config is None else config
    checks.raise_if("explore", [
        None if isinstance(config, GPTConfig) else f"config={config!r} is not a GPTConfig: use PRESETS[name]",
        checks.check_choice("device", device, ACCELERATORS), checks.check_int("nproc_per_node", nproc_per_node)])
    return Explorer(config, device, nproc_per_node)


class Explorer:
    """A shape with controls: `config` is the present one, `controls` are the widgets (none if they are "off")."""

    def __init__(self, config: GPTConfig, device: str, nproc_per_node: int) -> None:
        self.device, self.nproc_per_node = device, nproc_per_node
        self._id = f"tinylib-{uuid.uuid4().hex[:8]}"
        self._shown = self._settling = False
        self.controls: dict[str, Any] = {}
        if os.environ.get("TINYLIB_WIDGETS") != "off":
            self._build()
        self.config = config

    @property
    def config(self) -> GPTConfig:
        """The configuration that the controls make; raises ConfigError if it is illegal."""
        return replace(self._start, **{name: self.controls[name].value for name in FIELDS if self.controls})

    @config.setter
    def config(self, config: GPTConfig) -> None:
        self._start = config
        self._width = config.dim    # as the reader chose it; the slider takes the nearest multiple of the head dim
        if not self.controls:
            return
        with self._settle() as one:
            one["depth"].max = max(DEEPEST, config.depth)
            for name in ("depth", "tied", "vocab_size"):
                one[name].value = getattr(config, name)
            _offer(one["head_dim"], {*HEAD_DIMS, config.head_dim}, config.head_dim)
            _offer(one["seq_len"], {*(2**power for power in range(7, 18)), config.seq_len}, config.seq_len)
            self._offer_widths()

    @property
    def lines(self) -> dict[str, str]:
        """The lines of the panel by name; raises ConfigError if the configuration is illegal."""
        return figures(self.config, self.device, self.nproc_per_node)

    def _build(self) -> None:
        """Make and lay out the controls and the panel."""
        import ipywidgets as widgets

        look = {"style": {"description_width": "76px"}, "layout": widgets.Layout(width="330px")}
        half = {"layout": widgets.Layout(width="161px")}
        one = self.controls = {
            "preset": widgets.Dropdown(options=[("your own", ""), *((name, name) for name in PRESETS)],
                                       description="start from", **look),
            "depth": widgets.IntSlider(min=1, description="depth", **look),
            "dim": widgets.SelectionSlider(options=[1], description="width", **look),
            "head_dim": widgets.SelectionSlider(options=[1], description="head dim", **look),
            "vocabulary": widgets.IntSlider(min=1024, max=131_072, step=1024, description="vocabulary", readout=False,
                                            style=look["style"], layout=widgets.Layout(width="236px")),
            "vocab_size": widgets.IntText(layout=widgets.Layout(width="90px")),
            "tied": widgets.Checkbox(description="tied: one table for both jobs", **look),
            "seq_len": widgets.SelectionSlider(options=[1], description="context", **look),
            "balance": widgets.Button(description="balance", tooltip="vocabulary = 12 × depth × width", **half),
            "save": widgets.Button(description="save as my design", **half)}
        self._panel, self._note = widgets.HTML(), widgets.HTML(layout=widgets.Layout(width="326px"))
        one["balance"].on_click(self._balance)
        one["save"].on_click(self._save)
        for name in ("preset", "vocabulary", *FIELDS):
            one[name].observe(lambda change, name=name: self._moved(name), "value")
        rows = [one["preset"], one["depth"], one["dim"], one["head_dim"],
                widgets.HBox([one["vocabulary"], one["vocab_size"]]), one["tied"], one["seq_len"],
                widgets.HBox([one["balance"], one["save"]]), self._note]
        wide = widgets.Layout(flex="1 1 420px", min_width="0", margin="0 0 0 16px")
        self.box = widgets.HBox([widgets.VBox(rows), widgets.Box([self._panel], layout=wide)],
                                layout=widgets.Layout(flex_flow="row wrap"))

    @contextmanager
    def _settle(self) -> Iterator[dict[str, Any]]:
        """Set controls without their change events, then update the panel and the controls that only display."""
        self._settling = True
        try:
            yield self.controls
            self._show()
        finally:
            self._settling = False

    def _moved(self, name: str) -> None:
        """The reader moved a control: update those that depend on it, and the panel."""
        if self._settling:
            return
        if name == "preset" and (preset := self.controls["preset"].value):
            self.config = PRESETS[preset]
            return
        with self._settle() as one:
            if name == "dim":
                self._width = one["dim"].value
            elif name == "head_dim":
                self._offer_widths()
            elif name == "vocabulary":
                one["vocab_size"].value = one["vocabulary"].value

    def _offer_widths(self) -> None:
        step = self.controls["head_dim"].value
        nearest = step * max(1, round(self._width / step))
        _offer(self.controls["dim"], {*range(step, WIDEST + 1, step), nearest}, nearest)

    def _balance(self, _: Any) -> None:
        shape = (self.controls[name].value for name in ("depth", "dim", "head_dim"))
        self.controls["vocab_size"].value = sizing.balanced(*shape).vocab_size

    def _save(self, _: Any) -> None:
        try:
            file = profiles.save_design(self.config)
        except (ValueError, OSError) as error:    # a button's exceptions reach nobody
            hint = ["the batch is the profile's: a shorter context fits into it"] * ("seq_len" in str(error))
            self._note.value = words("not saved:", str(error), *hint)
        else:
            self._note.value = words(f"saved in {file}", "delete the file to go back to the profile's own", good=True)

    def _show(self) -> None:
        preset, _, page = self._faces()
        steps = round(self.controls["vocab_size"].value / 1024)
        self.controls["vocabulary"].value = 1024 * steps    # the slider keeps it between its ends
        self.controls["preset"].value = preset
        self._note.value = ""
        self._panel.value = f"<style>.{self._id}, .jp-OutputArea-child:has(.{self._id}) {{display: none}}</style>{page}"
        if self._shown:
            from IPython.display import update_display

            update_display(self._repr_mimebundle_(), raw=True, display_id=self._id)

    def _faces(self) -> tuple[str, str, str]:
        """The preset's name or "", and the panel as text and as HTML."""
        try:
            config, lines = self.config, self.lines
        except ConfigError as error:
            return "", str(error), words(*error.problems)
        return preset_name(config) or "", panel_text(config, lines), panel_html(config, lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """The static panel for IPython, in the class by which live widgets hide it."""
        _, text, page = self._faces()
        return {"text/plain": text, "text/html": f'<div class="{self._id}">{page}</div>' if self.controls else page}

    def _ipython_display_(self) -> None:
        """Show the static panel and, in a kernel, the widgets that hide it."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        self._shown = bool(self.controls) and hasattr(get_ipython(), "kernel")
        display(self._repr_mimebundle_(), raw=True, display_id=self._id if self._shown else None)
        if self._shown:
            view = self.box._repr_mimebundle_()
            display(view | {"text/plain": "(sliders, once this cell is run)"}, raw=True)

    def __repr__(self) -> str:
        return self._faces()[1]


def _offer(control: Any, options: set[int], value: int) -> None:
    """Set the options and the value of a slider in one message."""
    with control.hold_sync():
        control.options = [(f"{option:,}", option) for option in sorted(options)]
        control.value = value
