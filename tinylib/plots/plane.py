"""The plane of width and depth at one number of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes

from tinylib.config import PRESETS, GPTConfig
from tinylib.plots.style import CURVES, PALETTE, Figure, canvas, human, log2_axes, note, style
from tinylib.sizing import balanced

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
