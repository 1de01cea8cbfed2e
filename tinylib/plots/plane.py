"""The plane of width and depth at one number of parameters, and the Pareto front of a search in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from tinylib.config import PRESETS, GPTConfig
from tinylib.plots.style import CURVES, PALETTE, Figure, canvas, human, log2_axes, note, powers_of_two, style
from tinylib.sizing import balanced, missed, pareto_front

if TYPE_CHECKING:
    import pandas as pd

_DEEPEST, _CONTEXT = 64, 2048
"""Largest depth, and context in tokens, of the plane."""


@style()
def depth_width_plane(total: float = 38e6, vocab_sizes: Sequence[int] = (16_384, 24_576, 32_768, 65_536),
                      shapes: Mapping[str, GPTConfig] | None = None) -> Figure:
    """Shapes of `total` parameters (untied) in the plane of width and depth: a line a vocabulary, the balanced curve.

    On the balanced curve V = 12·L·D, so that every point splits `total` into exact thirds: 36·L·D² = `total`.
    Dotted lines have equal training FLOPs per token at T = 2,048.  With `total` given, the vocabulary follows from
    depth and width, V·D = `total`/2 - 6·L·D², so a token costs 3·`total` + 36·L·D² + 12·L·D·T.  Hollow points are the
    other shapes with the size and the exact thirds of one of `shapes` (None: three presets).

    >>> depth_width_plane().axes[0].get_title(loc="left")
    'Shapes of 38.0M parameters'
    """
    if shapes is None:
        shapes = {name: PRESETS[name] for name in ("goldilocks", "conventional", "extremist")}
    figure, axes = canvas(height_in=5.0)
    thinnest, widest = math.sqrt(total / 36 / _DEEPEST), math.sqrt(total / 36)    # where the balanced curve ends
    dim = np.geomspace(0.75 * thinnest, 2.2 * widest, 400)
    _equal_flops(axes, total, dim)
    for vocab_size, colour in zip(vocab_sizes, cycle(CURVES), strict=False):
        depth = (total - 2 * vocab_size * dim) / (12 * dim**2)
        axes.plot(dim, np.where(depth > 0, depth, np.nan), color=colour, linewidth=1.6, label=f"V = {vocab_size:,}")
    axes.plot(dim, total / (36 * dim**2), color=PALETTE["black"], linewidth=3, label="balanced: V = 12·L·D")
    _points(axes, list(shapes.items()), PALETTE["red"], "")
    _points(axes, _other_thirds(shapes), "white", "same size, exact thirds")
    log2_axes(axes, (dim[0], dim[-1]), (0.8, 1.6 * _DEEPEST))
    axes.set(xlabel="width D, numbers per token", ylabel="depth L, layers")
    axes.set_title(f"Shapes of {human(total)} parameters")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _equal_flops(axes: Axes, total: float, dim: np.ndarray) -> None:
    """Dotted lines of what balanced shapes of four depths cost, rounded, as far as the vocabulary is above zero."""
    flops = [float(f"{4 * total + 2 * _CONTEXT * math.sqrt(total * depth):.2g}") for depth in (4, 16, 32, 64)]
    label = f"equal FLOPs per token: {', '.join(map(human, flops))}"
    for cost in flops:
        depth = (cost - 3 * total) / (36 * dim**2 + 12 * dim * _CONTEXT)
        drawn = (depth > 0.8) & (depth < _DEEPEST) & (12 * depth * dim**2 < total)
        if drawn.any():
            axes.plot(dim, np.where(drawn, depth, np.nan), color=PALETTE["grey"], linewidth=0.9, linestyle=":",
                      label=label)
            label = ""


def _points(axes: Axes, shapes: Sequence[tuple[str, GPTConfig]], fill: str, legend: str) -> None:
    """A named point for each shape, the first with an entry in the legend."""
    for name, config in shapes:
        axes.plot(config.dim, config.depth, "o", color=PALETTE["red"], markerfacecolor=fill, markersize=7, zorder=3,
                  label=legend)
        text = f"{config.depth} × {config.dim}, V {config.vocab_size:,}"
        note(axes, f"{name}\n{text}" if name else text, config.dim, config.depth, (5, 6), va="bottom")
        legend = ""


def _other_thirds(shapes: Mapping[str, GPTConfig]) -> list[tuple[str, GPTConfig]]:
    """The other shapes, without names, that have the size of a balanced one of `shapes` and are balanced too."""
    taken, found = {(config.dim, config.depth) for config in shapes.values()}, {}
    for config in shapes.values():
        if config.vocab_size == 12 * config.depth * config.dim:
            for depth in range(1, _DEEPEST + 1):
                dim = math.isqrt(config.depth * config.dim**2 // depth)
                if depth * dim**2 == config.depth * config.dim**2 and dim % config.head_dim == 0:
                    found[dim, depth] = balanced(depth, dim, config.head_dim)
    return [("", config) for place, config in sorted(found.items()) if place not in taken]


@style()
def search_map(found: pd.DataFrame) -> Figure:
    """Scatter plot of what `sizing.search` found: imbalance against training FLOPs per token, depth as colour.

    The line is the Pareto front of these two.  Ringed points are on the Pareto front of all four criteria of the
    search, so a ring off the line is nearer to the target or needs less memory.  Below 1 point the axis of imbalance is
    linear, then logarithmic.  Numbers mark presets, the best and the cheapest row, and the rows of `sizing.missed`.

    >>> from tinylib.sizing import search
    >>> search_map(search(max_depth=16)).axes[0].get_ylabel()
    'imbalance, percentage points off the wanted split'
    """
    figure, axes = canvas(height_in=5.0)
    cost, imbalance = found["flops_per_token"] / 1e6, found["imbalance"]
    front, colour = found["pareto"].to_numpy(bool), np.log2(found["depth"])
    edge = pareto_front(found[["flops_per_token", "imbalance"]].to_numpy(float))
    edge = found[edge].drop_duplicates(["flops_per_token", "imbalance"]).sort_values("flops_per_token")
    axes.step(edge["flops_per_token"] / 1e6, edge["imbalance"], where="post", color=PALETTE["black"], linewidth=1,
              label="Pareto front of cost and balance")
    scale = {"cmap": "cividis", "vmin": colour.min(), "vmax": colour.max() + 1e-9}
    axes.scatter(cost[~front], imbalance[~front], s=18, c=colour[~front], linewidth=0.3, edgecolor=PALETTE["grey"],
                 zorder=3, **scale)
    ringed = axes.scatter(cost[front], imbalance[front], s=48, c=colour[front], linewidth=1.4,
                          edgecolor=PALETTE["red"], zorder=3.1, label="Pareto front of all four criteria", **scale)
    bar = figure.colorbar(ringed, ax=axes, label="depth L, layers", aspect=30, pad=0.02)
    ticks = powers_of_two(found["depth"].min(), found["depth"].max())
    bar.set_ticks(np.log2(ticks), labels=list(map(str, ticks)))
    for number, (name, x, y) in enumerate(_worth_naming(found), start=1):
        note(axes, str(number), x, y, (0, 5), ha="center", va="bottom", fontweight="bold", zorder=3.2)
        axes.plot([], [], color=PALETTE["black"], marker=f"${number}$", linestyle="", label=name)
    axes.set_yscale("symlog", linthresh=1, linscale=0.8)
    shown = [tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50) if tick <= 2 * imbalance.max() + 0.5]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_ylim(-0.15, 1.8 * imbalance.max() + 0.5)
    axes.set(xlabel="training FLOPs per token, millions", ylabel="imbalance, percentage points off the wanted split")
    axes.set_title(f"Balance and cost of {len(found):,} shape{'s' * (len(found) > 1)}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _worth_naming(found: pd.DataFrame) -> Iterator[tuple[str, float, float]]:
    """Name, cost in millions and imbalance of the first row, presets, up to four missed rows, and the cheapest row."""
    front = found[found["pareto"]]
    rows = [found.index[0], *found.index[found["preset"] != ""], *missed(found).index[:4],
            front["flops_per_token"].idxmin()]
    for row in dict.fromkeys(rows):
        shape = found.loc[row]
        text = f"{shape['depth']} × {shape['dim']}, V {shape['vocab_size']:,}"
        yield (f"{shape['preset']}: {text}" if shape["preset"] else text, shape["flops_per_token"] / 1e6,
               shape["imbalance"])
