"""Sliders for a shape.

The view has two faces made of the same figures: widgets, and a static panel, an output of its own that the notebook
stores.  The live face hides the static one by a style of its own; where it can't live (a notebook opened without its
kernel, a page on the web, a terminal) the style is missing and the panel is what one sees.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tinylib import checks, profiles, sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig
from tinylib.course.panel import figures, panel_html, panel_text, words
from tinylib.hardware import ACCELERATORS

HEAD_DIMS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256)
WIDEST, DEEPEST, LARGEST_VOCABULARY = 4096, 64, 131_072
"""Ends of the sliders; a configuration that lies beyond one moves it."""
VOCABULARY_STEP = 1024
"""Of the slider; the number beside it takes any."""
FIELDS = ("depth", "dim", "head_dim", "vocab_size", "tied", "seq_len")
"""Of a configuration that the controls set, each by the control of its name."""


def explore(config: GPTConfig | None = None, device: str = "H100", nproc_per_node: int = 1) -> Explorer:
    """Sliders for a shape and, live, what it holds, costs and takes to train on `nproc_per_node` devices.

    `config` is where they start (None: goldilocks).  Where widgets can't run, or $TINYLIB_WIDGETS is "off", the same
    panel is shown without them.  Raises ConfigError for what is no GPTConfig, or a device that is not in ACCELERATORS.

    >>> explore(PRESETS["micro"]).config.dim
    128
    """
    config = PRESETS["goldilocks"] if config is None else config
    checks.raise_if("explore", [
        None if isinstance(config, GPTConfig) else f"config={config!r} is not a GPTConfig: use PRESETS[name]",
        checks.check_choice("device", device, ACCELERATORS), checks.check_int("nproc_per_node", nproc_per_node)])
    return Explorer(config, device, nproc_per_node)


class Explorer:
    """A shape to play with: `config` is where it stands, `controls` are its widgets (none where they can't run)."""

    def __init__(self, config: GPTConfig, device: str, nproc_per_node: int) -> None:
        self._start, self.device, self.nproc_per_node = config, device, nproc_per_node
        self._id = f"tinylib-{uuid.uuid4().hex[:8]}"
        self._shown = self._settling = False
        self._width = config.dim
        """The width that the reader chose; the slider stands at the multiple of the head dim nearest to it."""
        self.controls: dict[str, Any] = {}
        widgets = ipywidgets_or_none()
        if widgets:
            self._build(widgets)
            self.config = config

    @property
    def config(self) -> GPTConfig:
        """What the controls say; raises ConfigError while that is impossible."""
        return replace(self._start, **{name: self.controls[name].value for name in FIELDS if self.controls})

    @config.setter
    def config(self, config: GPTConfig) -> None:
        self._start = config
        if self.controls:
            with self._settle():
                self._put(config)
            self._show()

    @property
    def lines(self) -> dict[str, str]:
        """The figures of the panel by name; raises ConfigError while the controls are impossible."""
        return figures(self.config, self.device, self.nproc_per_node)

    def _build(self, widgets: Any) -> None:
        """Make the controls and the panel, and lay them out."""
        look = {"style": {"description_width": "76px"}, "layout": widgets.Layout(width="330px")}
        half = {"layout": widgets.Layout(width="161px")}
        self.controls = {
            "preset": widgets.Dropdown(options=[("your own", ""), *((name, name) for name in PRESETS)],
                                       description="start from", **look),
            "depth": widgets.IntSlider(min=1, max=DEEPEST, description="depth", **look),
            "dim": widgets.SelectionSlider(options=[1], description="width", **look),
            "head_dim": widgets.SelectionSlider(options=[1], description="head dim", **look),
            "vocabulary": widgets.IntSlider(min=VOCABULARY_STEP, max=LARGEST_VOCABULARY, step=VOCABULARY_STEP,
                                            description="vocabulary", readout=False, style=look["style"],
                                            layout=widgets.Layout(width="236px")),
            "vocab_size": widgets.IntText(layout=widgets.Layout(width="90px")),
            "tied": widgets.Checkbox(description="tied: one table for both jobs", style=look["style"],
                                     layout=look["layout"]),
            "seq_len": widgets.SelectionSlider(options=[1], description="context", **look),
            "balance": widgets.Button(description="balance", tooltip="vocabulary = 12 × depth × width", **half),
            "save": widgets.Button(description="save as my design", **half)}
        self._panel, self._note = widgets.HTML(), widgets.HTML(layout=widgets.Layout(width="326px"))
        for name, control in self.controls.items():
            if name in ("balance", "save"):
                control.on_click(getattr(self, f"_{name}"))
            else:
                control.observe(lambda change, name=name: self._moved(name), "value")
        one = self.controls
        rows = [one["preset"], one["depth"], one["dim"], one["head_dim"],
                widgets.HBox([one["vocabulary"], one["vocab_size"]]), one["tied"], one["seq_len"],
                widgets.HBox([one["balance"], one["save"]]), self._note]
        wide = widgets.Layout(flex="1 1 420px", min_width="0", margin="0 0 0 16px")
        self.box = widgets.HBox([widgets.VBox(rows), widgets.Box([self._panel], layout=wide)],
                                layout=widgets.Layout(flex_flow="row wrap"))

    @contextmanager
    def _settle(self) -> Iterator[None]:
        """While controls are put where they belong, none of them counts as moved by the reader."""
        self._settling = True
        try:
            yield
        finally:
            self._settling = False

    def _moved(self, name: str) -> None:
        """A control was moved: bring the others along and show what it makes."""
        one = self.controls
        if self._settling:
            return
        if name == "preset" and one["preset"].value:
            self.config = PRESETS[one["preset"].value]
            return
        with self._settle():
            if name == "dim":
                self._width = one["dim"].value
            elif name == "head_dim":
                self._offer_widths()
            elif name == "vocabulary":
                one["vocab_size"].value = one["vocabulary"].value
        self._show()

    def _put(self, config: GPTConfig) -> None:
        one, self._width = self.controls, config.dim
        one["depth"].max = max(DEEPEST, config.depth)
        one["depth"].value, one["tied"].value, one["vocab_size"].value = config.depth, config.tied, config.vocab_size
        _offer(one["head_dim"], {*HEAD_DIMS, config.head_dim}, config.head_dim)
        _offer(one["seq_len"], {2**power for power in range(7, 18)} | {config.seq_len}, config.seq_len)
        self._offer_widths()

    def _offer_widths(self) -> None:
        step = self.controls["head_dim"].value
        nearest = step * max(1, round(self._width / step))
        _offer(self.controls["dim"], {*range(step, WIDEST + 1, step), nearest}, nearest)

    def _balance(self, _: Any) -> None:
        self.controls["vocab_size"].value = sizing.balanced(
            *(self.controls[name].value for name in ("depth", "dim", "head_dim"))).vocab_size

    def _save(self, _: Any) -> None:
        try:
            file = profiles.save_design(self.config)
            said = [f"saved in {file}", "delete the file to go back to the profile's own"]
        except (ValueError, OSError) as error:    # nobody sees what a button raises
            said = ["not saved:", str(error)]
            said += ["the batch is the profile's: a shorter context fits into it"] if "seq_len" in str(error) else []
        self._note.value = words(*said, good=said[0] != "not saved:")

    def _show(self) -> None:
        """Set the panel, and what the controls say of one another."""
        one = self.controls
        steps = round(one["vocab_size"].value / VOCABULARY_STEP)
        with self._settle():
            one["vocabulary"].value = VOCABULARY_STEP * max(1, min(LARGEST_VOCABULARY // VOCABULARY_STEP, steps))
            one["preset"].value = next((name for name, preset in PRESETS.items() if all(
                one[field].value == getattr(preset, field) for field in FIELDS)), "")
        self._note.value = ""
        hidden = f"<style>.{self._id}, .jp-OutputArea-child:has(.{self._id}) {{display: none}}</style>"
        faces = self._faces()
        self._panel.value = hidden + faces["text/html"]
        if self._shown:
            from IPython.display import update_display

            update_display(self._named(faces), raw=True, display_id=self._id)

    def _faces(self) -> dict[str, str]:
        try:
            config, lines = self.config, self.lines
        except ConfigError as error:
            return {"text/plain": str(error), "text/html": words(*error.problems)}
        return {"text/plain": panel_text(config, lines), "text/html": panel_html(config, lines)}

    def _named(self, faces: dict[str, str]) -> dict[str, str]:
        """The static panel under the name by which the live one hides it; without widgets it needs none."""
        return faces | {"text/html": f'<div class="{self._id}">{faces["text/html"]}</div>'} if self.controls else faces

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """The static panel, as IPython asks for it."""
        return self._named(self._faces())

    def _ipython_display_(self) -> None:
        """Show the static panel and, in a kernel, the widgets below, which hide it as long as they live."""
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        self._shown = bool(self.controls) and hasattr(get_ipython(), "kernel")
        display(self._repr_mimebundle_(), raw=True, display_id=self._id if self._shown else None)
        if self._shown:
            view = self.box._repr_mimebundle_()
            display(view | {"text/plain": "(sliders, once this cell is run)"}, raw=True)

    def __repr__(self) -> str:
        return self._faces()["text/plain"]


def ipywidgets_or_none() -> Any:
    """The library, or None where it is missing or not wanted.

    No kernel can know in the middle of a cell whether a front end will answer, so who executes notebooks to keep
    them says so in a variable.
    """
    if os.environ.get("TINYLIB_WIDGETS") == "off":
        return None
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets


def _offer(control: Any, options: set[int], value: int) -> None:
    """Give a slider its stops and where it stands, in one message."""
    with control.hold_sync():
        control.options = [(f"{option:,}", option) for option in sorted(options)]
        control.value = value
