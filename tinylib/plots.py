"""Figures from tables and records: one style, one palette that colour-blind readers can tell apart.

A figure is a function under `@style()` that asks `canvas` for axes, names both axes with their units and returns
the figure; a notebook shows what a cell returns.  No pyplot: nothing is global, and no backend is chosen.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure

from tinylib.config import PRESETS, GPTConfig
from tinylib.sizing import parameters

PALETTE: dict[str, str] = {
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00",
    "purple": "#CC79A7", "sky": "#56B4E9", "yellow": "#F0E442", "black": "#000000", "grey": "#767676"}
"""Okabe and Ito's colours; plain curves take them in this order, grey is for what stays in the background.

Source: Okabe and Ito, Color Universal Design (2008).
"""

PARTS: dict[str, str] = {"wte": PALETTE["orange"], "blocks": PALETTE["blue"], "lm_head": PALETTE["green"]}
"""A part of the model has the same colour in every figure."""

_STYLE: dict[str, Any] = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#DDDDDD", "grid.linewidth": 0.6, "lines.linewidth": 1.8,
    "axes.prop_cycle": matplotlib.cycler(color=[colour for name, colour in PALETTE.items() if name != "grey"])}


class Figure(_Figure):
    """A matplotlib figure that a notebook can show without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """The style of every figure, for the time of a `with` block or, as `@style()`, of a function."""
    with matplotlib.rc_context(_STYLE):
        yield


def canvas(columns: int = 1, height_in: float = 3.4, width_in: float = 7.0, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure of half a page and its axes (an array of axes if `columns` > 1); `kwargs` go to `Figure.subplots`.

    >>> with style():
    ...     figure, axes = canvas()
    >>> figure.get_size_inches().tolist()
    [7.0, 3.4]
    """
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.subplots(1, columns, **kwargs)


def footnote(figure: Figure, text: str) -> None:
    """One small line under a figure: what machine, date and command its numbers come from."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color=PALETTE["grey"])


def human(value: float) -> str:
    """A count in three digits and a letter.

    >>> human(37_994_496), human(589_824), human(201_326_592), human(7), human(4.54e20)
    ('38.0M', '590K', '201M', '7', '454E')
    """
    value = float(f"{value:.3g}")
    power = min(6, math.floor(math.log10(abs(value)) / 3)) if abs(value) >= 1000 else 0
    return f"{value / 1000**power:#.3g}".rstrip(".") + "KMBTPE"[power - 1] if power else f"{value:.3g}"


# Architecture math

_CURVES = [PALETTE[name] for name in ("orange", "blue", "green", "purple", "sky", "yellow", "grey")]
"""Red is left for the points on the curves."""


@style()
def parameter_split(configs: Mapping[str, GPTConfig]) -> Figure:
    """Stacked bars of parameters by part, in millions, with each part's share; one bar for each named shape.

    >>> parameter_split({"goldilocks": PRESETS["goldilocks"]}).axes[0].get_xlabel()
    'parameters, millions'
    """
    figure, axes = canvas(height_in=0.9 + 0.34 * len(configs))
    counts = [parameters(config) for config in configs.values()]
    longest = max(count.total for count in counts)
    left = np.zeros(len(configs))
    for part, colour in PARTS.items():
        sizes = np.array([getattr(count, part) for count in counts]) / 1e6
        bars = axes.barh(list(configs), sizes, left=left, color=colour, label=part, height=0.72)
        shares = [f"{count.split[part]:.0f} %" if 1e6 * size > 0.06 * longest else ""
                  for count, size in zip(counts, sizes, strict=True)]
        axes.bar_label(bars, shares, label_type="center", fontsize=8, color="black" if part == "wte" else "white")
        left += sizes
    axes.bar_label(bars, [human(count.total) for count in counts], padding=4, fontsize=8)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("parameters, millions")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


@style()
def depth_width_plane(total: float = 38e6, vocab_sizes: Sequence[int] = (16_384, 24_576, 32_768, 65_536),
                      shapes: Mapping[str, GPTConfig] | None = None, max_depth: int = 64) -> Figure:
    """The plane of width and depth: a line of `total` parameters (untied) for each vocabulary, and the balanced curve.

    On the balanced curve V = 12·L·D, so that every point splits `total` into exact thirds: 36·L·D² = `total`.
    """
    shapes = {name: PRESETS[name] for name in ("goldilocks", "conventional", "extremist")} if shapes is None else shapes
    figure, axes = canvas(height_in=4.2)
    dim = np.geomspace(96, 1600, 400)
    axes.plot(dim, total / (36 * dim**2), color=PALETTE["black"], linewidth=3, label="balanced: V = 12·L·D")
    for vocab_size, colour in zip(vocab_sizes, _CURVES, strict=False):
        depth = (total - 2 * vocab_size * dim) / (12 * dim**2)
        axes.plot(dim, np.where(depth > 0, depth, np.nan), color=colour, linewidth=1.4, label=f"V = {vocab_size:,}")
    for name, config in shapes.items():
        axes.plot(config.dim, config.depth, "o", color=PALETTE["red"], markersize=7, zorder=3)
        axes.annotate(f"{name}\n{config.depth} × {config.dim}, V {config.vocab_size:,}", (config.dim, config.depth),
                      xytext=(-7, -5), textcoords="offset points", fontsize=8, zorder=2, ha="right", va="top",
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1})
    _powers_of_two(axes, widths=(128, 256, 512, 1024), depths=(1, 2, 4, 8, 16, 32, 64))
    axes.set(xlim=(90, 1500), ylim=(0.8, max_depth * 1.2))
    axes.set(xlabel="width D, numbers per token", ylabel="depth L, layers")
    axes.set_title(f"Ways to spend {human(total)} parameters")
    axes.legend(loc="upper right")
    return figure


@style()
def vocabulary_share(vocab_sizes: Sequence[int] = (8_192, 24_576, 65_536, 131_072), depth: int = 4,
                     shapes: Mapping[str, GPTConfig] | None = None) -> Figure:
    """Share of both tables in an untied model against its width, a line for each vocabulary, at one depth.

    The share is 2·V·D / (2·V·D + 12·L·D²) = V / (V + 6·L·D).
    """
    figure, axes = canvas()
    dim = np.geomspace(64, 8192, 300)
    for vocab_size, colour in zip(vocab_sizes, _CURVES, strict=False):
        axes.plot(dim, 100 * vocab_size / (vocab_size + 6 * depth * dim), color=colour, label=f"V = {vocab_size:,}")
    axes.axhline(200 / 3, color=PALETTE["grey"], linewidth=1, linestyle="--")
    axes.annotate("1 : 1 : 1", (70, 200 / 3), xytext=(0, 3), textcoords="offset points", fontsize=8)
    for name, config in (shapes or {}).items():
        axes.plot(config.dim, 100 * 2 * parameters(config).wte / parameters(config).total_untied, "o",
                  color=PALETTE["red"], label=name)
    _powers_of_two(axes, widths=(64, 128, 256, 512, 1024, 2048, 4096, 8192))
    axes.set(ylim=(0, 102), xlabel="width D, numbers per token", ylabel="both tables, % of parameters")
    axes.set_title(f"What the vocabulary costs a model of {depth} layers")
    axes.legend(loc="lower left")
    return figure


def _powers_of_two(axes: Axes, widths: Sequence[int], depths: Sequence[int] = ()) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    if depths:
        axes.set_yscale("log", base=2)
        axes.set_yticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
