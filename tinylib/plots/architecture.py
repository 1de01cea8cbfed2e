"""Where the parameters and the FLOPs of a shape are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from tinylib.config import PRESETS, GPTConfig
from tinylib.plots.style import CURVES, PALETTE, PARTS, Figure, canvas, human, style
from tinylib.sizing import flops_per_token, parameters

_DARK = ("blocks", "lm_head")
"""Parts whose colour wants white letters."""


@style()
def parameter_split(configs: Mapping[str, GPTConfig]) -> Figure:
    """Stacked bars of parameters by part, in millions, with each part's share; one bar for each named shape.

    >>> parameter_split({"goldilocks": PRESETS["goldilocks"]}).axes[0].get_xlabel()
    'parameters, millions'
    """
    counts = [parameters(config) for config in configs.values()]
    return _stacked_bars(list(configs), {part: [getattr(count, part) for count in counts] for part in PARTS},
                         "parameters, millions")


@style()
def compute_split(configs: Mapping[str, GPTConfig], context: int | None = None) -> Figure:
    """Stacked bars of training FLOPs per token by part, in millions; attention is what grows with `context`.

    The matrices of blocks and head cost 6 FLOPs a parameter, looking up an embedding none.
    """
    total = [flops_per_token(config, context) for config in configs.values()]
    blocks = [6 * parameters(config).blocks for config in configs.values()]
    head = [6 * config.vocab_size * config.dim for config in configs.values()]
    attention = [whole - part - table for whole, part, table in zip(total, blocks, head, strict=True)]
    return _stacked_bars(list(configs), {"blocks": blocks, "lm_head": head, "attention scores": attention},
                         "training FLOPs per token, millions")


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
    for vocab_size, colour in zip(vocab_sizes, CURVES, strict=False):
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
    for vocab_size, colour in zip(vocab_sizes, CURVES, strict=False):
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


def _stacked_bars(names: Sequence[str], parts: Mapping[str, Sequence[int]], xlabel: str) -> Figure:
    """One bar a name, one segment a part with its share of the bar; values are drawn in millions."""
    figure, axes = canvas(height_in=0.9 + 0.34 * len(names))
    sizes = {part: np.array(values) / 1e6 for part, values in parts.items()}
    total = np.sum(list(sizes.values()), axis=0)
    left = np.zeros(len(names))
    for part, size in sizes.items():
        bars = axes.barh(names, size, left=left, color=PARTS.get(part, PALETTE["purple"]), label=part, height=0.72)
        shares = [f"{100 * one / whole:.0f} %" if one > 0.06 * total.max() else ""
                  for one, whole in zip(size, total, strict=True)]
        axes.bar_label(bars, shares, label_type="center", fontsize=8, color="white" if part in _DARK else "black")
        left += size
    axes.bar_label(bars, [human(1e6 * whole) for whole in total], padding=4, fontsize=8)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(parts))
    return figure


def _powers_of_two(axes: Axes, widths: Sequence[int], depths: Sequence[int] = ()) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    if depths:
        axes.set_yscale("log", base=2)
        axes.set_yticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
