"""Marks that several figures share: stacked bars, and texts on a white background."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tinylib.plots.style import ink

PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}
"""Background of a text that crosses lines."""
_CHARACTER = 0.0145
"""Upper bound for the width of a small character, as a share of the width of the axes."""


def stacked_bars(axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]], colours: Mapping[str, str],
                 inside: Callable[[float, float], str], ends: Sequence[str], reach: float = 0) -> None:
    """Horizontal stacked bars: one bar a name from top to bottom, one segment a part, the text of `ends` behind each.

    `inside(size, whole)` is the text in a segment of a bar of size `whole`; a segment too narrow for it has none.  The
    axis covers at least 0 to `reach`.
    """
    whole = np.sum([np.asarray(sizes, float) for sizes in parts.values()], axis=0)
    end = max([reach, *(size / (1 - _CHARACTER * (len(text) + 1)) for size, text in zip(whole, ends, strict=True))])
    left = np.zeros(len(names))
    for part, sizes in parts.items():
        bars = axes.barh(names, sizes, left=left, color=colours[part], label=part, height=0.72, edgecolor="white",
                         linewidth=0.4)
        texts = [inside(size, full) for size, full in zip(sizes, whole, strict=True)]
        axes.bar_label(bars, [text if size > end * _CHARACTER * len(text) else ""
                              for size, text in zip(sizes, texts, strict=True)],
                       label_type="center", fontsize=8, color=ink(colours[part]))
        left = left + sizes
    axes.bar_label(bars, ends, padding=4, fontsize=8, zorder=3, bbox=PAPER | {"alpha": 1})
    axes.set_xlim(0, end)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def note(axes: Axes, text: str, x: float, y: float, offset: tuple[float, float] = (0, 0), **how: Any) -> None:
    """Annotate a point: a small text on a white background, `offset` points away from it."""
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", fontsize=8, linespacing=1.0,
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
