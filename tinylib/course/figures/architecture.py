"""Figures of notebook 01: shares of the parameters, the roofline, the plane of parameters and tokens."""

from __future__ import annotations

import math
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from tinylib.config import PRESETS, GPTConfig
from tinylib.plots.style import CURVES, PALETTE, Figure, canvas, human, log2_axes, note, style
from tinylib.sizing import BUDGETS, TIERS, flops_per_token, parameters, token_budget

if TYPE_CHECKING:
    import pandas as pd

ON_THE_PLANE = ("nano", "micro", "mini", "goldilocks", "conventional", "extremist", "nanochat-d20", "nanochat-d26",
                "nanochat-d32")


@style()
def vocabulary_share(name: str, config: GPTConfig) -> Figure:
    """Share of both tables in an untied model of the depth of `config` against its width, a line a vocabulary.

    The share is 2·V·D / (2·V·D + 12·L·D²) = V / (V + 6·L·D).  The point is `config` itself.

    >>> vocabulary_share("goldilocks", PRESETS["goldilocks"]).axes[0].get_ylabel()
    'both tables, % of parameters'
    """
    figure, axes = canvas(height_in=3.8)
    dim = np.geomspace(64, 8192, 300)
    for vocab_size, colour in zip((8_192, 24_576, 65_536, 131_072), CURVES, strict=False):
        share = 100 * vocab_size / (vocab_size + 6 * config.depth * dim)
        axes.plot(dim, share, color=colour, label=f"V = {vocab_size:,}")
    axes.axhline(200 / 3, color=PALETTE["grey"], linewidth=1, linestyle="--", label="1 : 1 : 1")
    share = 200 * parameters(config).wte / parameters(config).total_untied
    axes.plot(config.dim, share, "o", color=PALETTE["red"], label=name)
    log2_axes(axes, (64, 8192))
    axes.set(ylim=(0, 102), xlabel="width D, numbers per token", ylabel="both tables, % of parameters")
    axes.set_title(f"Share of the vocabulary in a model of {config.depth} layers")
    axes.legend(loc="lower left")
    return figure


@style()
def roofline(table: pd.DataFrame, flops_per_s: float, bytes_per_s: float) -> Figure:
    """Roofline: FLOP/s that a device allows over arithmetic intensity, and operations as they were measured.

    `table` has a row an operation, with `intensity` in FLOPs per byte and the measured `flops_per_s`.
    """
    figure, axes = canvas(height_in=3.6)
    balance = flops_per_s / bytes_per_s
    ends = min(balance / 4, table["intensity"].min() / 2), max(4 * balance, 3 * table["intensity"].max())
    across = np.geomspace(*ends, 100)
    axes.plot(across, np.minimum(flops_per_s, across * bytes_per_s) / 1e9, "--", color=PALETTE["black"])
    axes.plot(table["intensity"], table["flops_per_s"] / 1e9, "o", color=PALETTE["blue"], zorder=4)
    for name, x, y in zip(table.index, table["intensity"], table["flops_per_s"] / 1e9, strict=True):
        near = table["intensity"][(table["intensity"] / x).between(0.4, 2.5)]
        # Below, beside or above the point, away from its neighbours; below at either end, off the roof.
        offset, ha = ((0, -12), "center") if x == near.min() else ((6, -8), "left") if x == near.max() else (
            (0, 12), "center")
        note(axes, str(name), x, y, offset, ha=ha)
    note(axes, f"memory: {bytes_per_s / 1e9:.0f} GB/s", across[20], across[20] * bytes_per_s / 1e9, (-6, 8), ha="right")
    note(axes, f"compute: {flops_per_s / 1e9:,.0f} GFLOP/s", balance, flops_per_s / 1e9, (-8, 4), ha="right")
    axes.margins(y=0.1)
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOPs per byte", ylabel="GFLOP/s")
    axes.set_ylim(top=2.5 * flops_per_s / 1e9)
    axes.set_title("Roofline of this machine, and what it was measured to do")
    return figure


@style()
def iso_flop() -> Figure:
    """The plane of parameters and training tokens with lines of equal training FLOPs, both axes logarithmic.

    On a line 6·N·D is the same: 6 FLOPs for each of N parameters and each of D tokens, the usual estimate.  The exact
    count of a model, `flops_per_token`, adds attention scores and has its embedding for free.  So a whisker leads from
    each preset, at Chinchilla's 20 tokens a parameter, to the line of its exact count, and the label has the factor.
    Black lines are those of TIERS that reach the right edge.

    >>> iso_flop().axes[0].get_xlabel()
    'parameters N'
    """
    figure, axes = canvas(height_in=4.8)
    sizes, tokens, per_token = np.array([(parameters(config).total, token_budget(config), flops_per_token(config))
                                         for config in map(PRESETS.get, ON_THE_PLANE)], float).T
    flops = tokens * per_token
    across = np.array([sizes.min() / 4, sizes.max() * 8])
    axes.set(xscale="log", yscale="log", xlim=across, ylim=(tokens.min() / 15, tokens.max() * 15),
             xlabel="parameters N", ylabel="training tokens D")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: human(value).replace(".00", "").replace(".0", ""))
    axes.minorticks_off()
    axes.plot(across, BUDGETS["all"].tokens_per_parameter * across, color=PALETTE["blue"],
              label="20 tokens a parameter")
    _flop_lines(axes, flops, across)
    axes.vlines(sizes, tokens, flops / (6 * sizes), color=PALETTE["red"], linewidth=1.6)
    axes.plot(sizes, flops / (6 * sizes), "_", color=PALETTE["red"], label="exact FLOPs")
    axes.plot(sizes, tokens, "o", color=PALETTE["red"], markersize=5, zorder=3, label="a shape")
    labels: dict[tuple[float, float], list[str]] = {}    # shapes of about one size share a label
    for name, size, count, cost in zip(ON_THE_PLANE, sizes, tokens, flops, strict=True):
        place = next((known for known in labels if math.isclose(known[0], size, rel_tol=0.1)), (size, count))
        labels.setdefault(place, []).append(f"{name} × {cost / (6 * size * count):.2f}")
    for place, names in labels.items():
        note(axes, "\n".join(names), *place, (7, -3), va="top")
    figure.legend(loc="outside lower center", ncols=4)
    axes.set_title("Training FLOPs, spent on parameters or on tokens")
    return figure


def _flop_lines(axes: Axes, flops: np.ndarray, across: np.ndarray) -> None:
    """Lines of equal 6·N·D: dotted for powers of ten, named in the half above the points; black for TIERS."""
    low, high = axes.get_ylim()
    label = "equal 6·N·D"
    for power in range(math.floor(math.log10(flops.min())), math.ceil(math.log10(flops.max())) + 1):
        product = 10.0**power / 6
        axes.plot(across, product / across, color=PALETTE["grey"], linewidth=0.8, linestyle=":", label=label)
        label = ""
        size = max(1.6 * across[0], product / (0.6 * high), math.sqrt(product / 20 / 200))
        note(axes, f"1e{power}", size, product / size, ha="center")
    for tier in TIERS:
        at_edge = tier.flops / (6 * across[1])
        if low < at_edge < high:
            axes.plot(across, tier.flops / 6 / across, color=PALETTE["black"], linewidth=1.4)
            text = fill(f"{tier.flops:.2g}: {tier.ability}".replace("e+", "e"), 20)
            note(axes, text, across[1], at_edge, (5, 0), annotation_clip=False)
