"""Figures of notebook 06: first values, geometry of the tables, differences with intervals, records, their law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tinylib.plots.style import CURVES, PALETTE, PARTS, Figure, canvas, footnote, note, style

if TYPE_CHECKING:
    import pandas as pd


@style()
def tied_start(table: pd.DataFrame, uniform: float, marks: Mapping[str, float]) -> Figure:
    """Loss of a tied model before training, and its probability to repeat a token, over the std of the first values.

    `table` is indexed by std, with the columns `loss` (nats) and `repeats` (0 to 1); `uniform` is ln V; `marks` are
    names of some std.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.2)
    left.plot(table.index, table["loss"], "o-", color=PALETTE["blue"])
    left.axhline(uniform, color=PALETTE["black"], linewidth=1, linestyle="--")
    note(left, "ln V, a uniform guess", table.index[-1], uniform, offset=(0, -9), ha="right")
    left.set(ylabel="first loss, nats per token", ylim=(0, None))
    left.set_title("Loss before training")
    right.plot(table.index, 100 * table["repeats"], "o-", color=PALETTE["blue"])
    right.set(ylabel="probability, %", ylim=(0, 112))
    right.set_title("Probability of the token just read")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="std of the table's first values")
        for name, std in marks.items():
            axes.axvline(std, color=PALETTE["red"], linewidth=1, linestyle=":")
            axes.annotate(name, (std, 0.97), xycoords=("data", "axes fraction"), xytext=(3, 0), va="top", fontsize=8,
                          textcoords="offset points", color=PALETTE["red"])
    return figure


@style()
def rate_curves(table: pd.DataFrame, noise: float, note: str = "") -> Figure:
    """Bits per byte over a factor of all learning rates, less those at 1: a curve a column of `table`, one seed each.

    The grey band is what one seed doesn't tell from none: 2√2 times the standard deviation `noise` over seeds.
    """
    figure, axes = canvas(height_in=3.2)
    band = 2 * 2**0.5 * noise
    axes.axhspan(-band, band, color=PALETTE["grey"], alpha=0.25, linewidth=0, label="noise of one seed")
    for (name, curve), colour, marker in zip((table - table.loc[1.0]).items(), CURVES, "os^vDPX", strict=False):
        axes.plot(curve.index, curve, marker=marker, color=colour, label=name, markersize=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(table.index), [f"× {factor:g}" for factor in table.index])
    axes.minorticks_off()
    axes.set(xlabel="all learning rates of the recipe", ylabel="bits per byte, less at × 1")
    axes.set_title("Bits per byte by learning rate")
    figure.legend(loc="outside right")
    footnote(figure, note)
    return figure


@style()
def table_geometry(norms: pd.DataFrame, cosines: Mapping[str, np.ndarray]) -> Figure:
    """Left: norm of a row over the uses of its token; right: histograms of cosines between rows of two tables.

    `norms` is indexed by uses, a column a table; `cosines` are values by name, drawn in this order.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.2)
    colours = {"wte": PARTS["wte"], "lm_head": PARTS["lm_head"], "tied": PALETTE["black"]}
    for name, norm in norms.items():
        left.plot(norm.index, norm / norm.iloc[-1], "o-", color=colours[str(name)], label=name, markersize=4)
    left.set(xscale="log", xlabel="uses of the token in the training text", ylabel="median norm, frequent tokens = 1",
             ylim=(0, None))
    left.set_title("Size of a row")
    left.legend()
    edges = np.linspace(-0.6, 0.6, 61)
    for (name, values), colour in zip(cosines.items(), (PALETTE["grey"], PALETTE["blue"]), strict=True):
        right.hist(values, edges, density=True, histtype="stepfilled", alpha=0.5, color=colour, label=name)
    right.set(xlabel="cosine", ylabel="density", ylim=(0, 1.25 * right.get_ylim()[1]))
    right.set_title("Rows of wte and of lm_head")
    right.legend(loc="upper right")
    return figure


@style()
def difference_bars(table: pd.DataFrame, label: str, note: str = "") -> Figure:
    """A row a line of `table`: the `difference` in bits per byte, and its interval from `low` to `high`."""
    figure, axes = canvas(height_in=0.9 + 0.32 * len(table))
    place = np.arange(len(table))
    axes.hlines(place, table["low"], table["high"], color=PALETTE["blue"], linewidth=6, alpha=0.3)
    axes.plot(table["difference"], place, "|", color=PALETTE["black"], markersize=14, markeredgewidth=2)
    axes.axvline(0, color=PALETTE["black"], linewidth=1)
    axes.set_yticks(place, list(table.index))
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(label)
    footnote(figure, note)
    return figure


@style()
def arms_over(tables: Mapping[str, pd.DataFrame], column: str, label: str, reference: float, note: str = "") -> Figure:
    """Bits per byte over `column` of the arms: a point a run, a line through the means, a panel a table.

    `tables` have a row a run, with `bits_per_byte`; a dotted line marks `reference`.  All panels have one y axis.
    """
    figure, panels = canvas(columns=len(tables), height_in=3.2, squeeze=False, sharey=True)
    for axes, (title, table) in zip(panels[0], tables.items(), strict=True):
        mean = table.groupby(column)["bits_per_byte"].mean()
        axes.plot(mean.index, mean, color=PALETTE["blue"])
        axes.plot(table[column], table["bits_per_byte"], "o", color=PALETTE["blue"], markersize=4, alpha=0.6)
        axes.axvline(reference, color=PALETTE["red"], linewidth=1, linestyle=":")
        axes.set_xscale("log")
        axes.set_xticks(list(mean.index), [f"{value:,}" for value in mean.index])
        axes.minorticks_off()
        axes.set(xlabel=label, ylabel="bits per byte" if axes is panels[0, 0] else None)
        axes.set_title(title)
    footnote(figure, note)
    _turn_crowded(figure)
    return figure


def _turn_crowded(figure: Figure) -> None:
    """Turn the labels of each x axis where they overlap, and put the axes' names at one height."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent().padded(2) for label in axes.get_xticklabels()]
        if any(one.overlaps(other) for one, other in pairwise(boxes)):
            axes.tick_params(axis="x", rotation=45)
    figure.align_xlabels()


@style()
def loss_differences(table: pd.DataFrame, arms: Sequence[str], reference: str, note: str = "") -> Figure:
    """Training loss of `arms` less the reference's with the same seed, over the share of a run: a line a seed.

    `table` has a row a run: `arm`, `seed` and `curve`, its steps and losses; all have one vocabulary.
    """
    curves = {(row.arm, row.seed): np.array(row.curve).T for row in table.itertuples()}
    share, window = np.linspace(0.1, 1, 91), np.ones(5) / 5
    figure, panels = canvas(columns=len(arms), height_in=2.9, squeeze=False, sharey=True)
    for axes, arm in zip(panels[0], arms, strict=True):
        for seed, colour in zip(sorted(seed for name, seed in curves if name == arm), CURVES, strict=False):
            mine, other = (np.interp(share, steps / steps[-1], losses)
                           for steps, losses in (curves[arm, seed], curves[reference, seed]))
            axes.plot(share[2:-2], np.convolve(mine - other, window, "valid"), color=colour, label=f"seed {seed}")
        axes.axhline(0, color=PALETTE["black"], linewidth=1)
        axes.set(xlabel="share of the run", ylabel=f"loss less that of {reference}" if axes is panels[0, 0] else None)
        axes.set_title(arm)
    panels[0, -1].legend(loc="upper right")
    footnote(figure, note)
    return figure


@style()
def law_and_records(unseen: Mapping[str, pd.DataFrame], note: str = "") -> Figure:
    """Bits per byte as measured over those predicted, with 95% intervals; a panel a way to hold runs out.

    Each table has a row a shape and budget: `size`, `predicted`, `half`, `bits_per_byte`.
    """
    figure, panels = canvas(columns=len(unseen), height_in=3.4, squeeze=False)
    for axes, (title, table) in zip(panels[0], unseen.items(), strict=True):
        measured, predicted, half = (table[name] for name in ("bits_per_byte", "predicted", "half"))
        low = min(measured.min(), (predicted - half).min()) - 0.02
        high = max(measured.max(), (predicted + half).max()) + 0.02
        axes.axline((low, low), slope=1, color=PALETTE["black"], linewidth=1)
        for (size, part), colour in zip(table.groupby("size", sort=False), CURVES, strict=False):
            axes.errorbar(part["predicted"], part["bits_per_byte"], xerr=part["half"], fmt="o", color=colour,
                          markersize=4, linewidth=0.8, label=size)
        axes.set(xlabel="predicted bits per byte", ylabel="measured" if axes is panels[0, 0] else None,
                 xlim=(low, high), ylim=(measured.min() - 0.05, measured.max() + 0.05))
        axes.set_title(title)
        axes.legend(loc="lower right")
    footnote(figure, note)
    return figure
