"""Style of all figures: palette, canvas, notes, logarithmic axes, number format."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as _Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE: dict[str, str] = {
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00",
    "purple": "#CC79A7", "sky": "#56B4E9", "yellow": "#F0E442", "black": "#000000", "grey": "#767676"}
"""Colours that colour-blind readers can tell apart; grey is for the background.

Source: Okabe and Ito, Color Universal Design (2008).
"""

PARTS: dict[str, str] = {"wte": PALETTE["orange"], "blocks": PALETTE["blue"], "lm_head": PALETTE["green"]}
"""Colour of each part of the model, the same in every figure."""

CURVES = [PALETTE[name] for name in ("orange", "blue", "green", "purple", "sky", "black", "grey")]
"""Colours of curves in order; red is for single points."""

PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
"""Background of a text that crosses lines."""

_STYLE: dict[str, Any] = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#DDDDDD", "grid.linewidth": 0.6, "lines.linewidth": 1.8,
    "axes.prop_cycle": matplotlib.cycler(color=[colour for name, colour in PALETTE.items() if name != "grey"])}


class Figure(_Figure):
    """A matplotlib figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self, colours: int = 256, optimize: bool = True) -> bytes:
        """PNG with a palette of `colours`, because notebooks store it: a third of the bytes of full colour.

        64 colours take a quarter less again; without `optimize` it is a tenth more, in half the time.
        """
        from PIL import Image  # matplotlib brings it along

        drawn, png = FigureCanvasAgg(self), io.BytesIO()
        drawn.draw()
        image = Image.fromarray(np.asarray(drawn.buffer_rgba())).convert("RGB")
        image.quantize(colours, dither=Image.Dither.NONE).save(png, "png", optimize=optimize)
        return png.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all figures in a `with` block or, as `@style()`, in a function."""
    with matplotlib.rc_context(_STYLE):
        yield


def canvas(columns: int = 1, height_in: float = 3.4, width_in: float = 7.0, rows: int = 1,
           **kwargs: Any) -> tuple[Figure, Any]:
    """Make a figure and its axes (an array if there are several); `kwargs` go to `Figure.subplots`.

    >>> with style():
    ...     figure, axes = canvas()
    >>> figure.get_size_inches().tolist()
    [7.0, 3.4]
    """
    figure = Figure(figsize=(width_in, height_in), dpi=110, layout="constrained")
    return figure, figure.subplots(rows, columns, **kwargs)


def ink(colour: Any) -> str:
    """Colour of a text on a background of `colour` (as matplotlib takes it): white or black, by contrast ratio.

    >>> ink(PALETTE["blue"]), ink(PALETTE["green"])
    ('white', 'black')
    """
    linear = [(part / 1.055 + 0.052) ** 2.4 for part in matplotlib.colors.to_rgb(colour)]
    return "white" if np.dot((0.2126, 0.7152, 0.0722), linear) < 0.179 else "black"


def footnote(figure: Figure, text: str) -> None:
    """Write a small line under a figure, if any: the machine, date and command that its numbers come from."""
    if text:
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color=PALETTE["grey"])


def human(value: float) -> str:
    """Format a count with three digits and a letter for the power of 1000.

    >>> human(37_994_496), human(589_824), human(201_326_592), human(7), human(4.54e20)
    ('38.0M', '590K', '201M', '7', '454E')
    """
    value = float(f"{value:.3g}")
    power = min(6, math.floor(math.log10(abs(value)) / 3)) if abs(value) >= 1000 else 0
    return f"{value / 1000**power:#.3g}".rstrip(".") + "KMBTPE"[power - 1] if power else f"{value:.3g}"


def note(axes: Axes, text: str, x: float, y: float, offset: tuple[float, float] = (0, 0), **how: Any) -> None:
    """Annotate a point: a small text on a white background, `offset` points away from it."""
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", fontsize=8, linespacing=1.15,
                  **{"ha": "left", "va": "center", "bbox": PAPER, **how})


def log2_axes(axes: Axes, x: tuple[float, float], y: tuple[float, float] | None = None) -> None:
    """Make axes logarithmic between the given limits, with ticks at the powers of two."""
    for name, limits in (("x", x), ("y", y)):
        if limits:
            ticks = powers_of_two(*limits)
            axes.set(**{f"{name}scale": "log", f"{name}lim": limits, f"{name}ticks": ticks,
                        f"{name}ticklabels": map(str, ticks)})
    axes.minorticks_off()


def powers_of_two(low: float, high: float) -> list[int]:
    """The powers of two from `low` to `high`.

    >>> powers_of_two(90, 600), powers_of_two(1, 4)
    ([128, 256, 512], [1, 2, 4])
    """
    return [2**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
