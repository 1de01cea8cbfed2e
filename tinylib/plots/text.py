"""What a vocabulary gives and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from tinylib.plots.style import CURVES, PALETTE, PARTS, Figure, canvas, style

if TYPE_CHECKING:
    import pandas as pd


@style()
def compression_curve(table: pd.DataFrame, blocks: int, chosen: int) -> Figure:
    """Characters per token, and the size of one vocabulary table, against the vocabulary.

    `table` has the columns vocab_size, characters_per_token and table_parameters; `blocks` is the size of the
    transformer blocks, `chosen` the vocabulary of the course.
    """
    figure, (left, right) = canvas(columns=2)
    left.plot(table.vocab_size, table.characters_per_token, "o-", color=PALETTE["blue"])
    left.set(ylim=(0, None), xlabel="vocabulary V, ids", ylabel="characters per token, held out")
    left.set_title("What a larger vocabulary gives")
    right.plot(table.vocab_size, table.table_parameters / 1e6, "o-", color=PARTS["wte"], label="one table, V·D")
    right.axhline(blocks / 1e6, color=PARTS["blocks"], linestyle="--", label="all blocks, 12·L·D²")
    right.set(ylim=(0, None), xlabel="vocabulary V, ids", ylabel="parameters, millions")
    right.set_title("What it costs")
    right.legend(loc="upper left")
    for axes in (left, right):
        _vocabularies(axes, table.vocab_size, chosen)
    return figure


@style()
def cost_of_text(costs: pd.DataFrame, chosen: int, decisions: Mapping[str, Any] | None = None) -> Figure:
    """Training FLOPs for the same text against the vocabulary, relative to the cheapest; a line a column of `costs`.

    `costs` is indexed by vocabulary, one column for each model; a ring marks the cheapest vocabulary.  Or `decisions`
    has a `tokenizer.Decision` for each column: below the lines a thick bar shows its 95 % interval, a thin one what
    costs less than 1 % more.
    """
    figure, axes = canvas()
    for (name, cost), colour in zip(costs.items(), CURVES, strict=False):
        relative = cost / cost.min()
        axes.plot(relative.index, relative, "o-", color=colour, label=name, markersize=4)
        if not decisions:
            axes.plot(cost.idxmin(), 1, "o", color=colour, markersize=11, markerfacecolor="none")
    for place, (found, colour) in enumerate(zip((decisions or {}).values(), CURVES, strict=False)):
        y = 0.8 - 0.15 * place
        axes.plot(found.flat, (y, y), color=colour, linewidth=1)
        axes.plot((found.low, found.high), (y, y), color=colour, linewidth=5, solid_capstyle="butt")
        axes.plot(found.vocab_size, y, "|", color=PALETTE["black"], markersize=9)
    axes.set(xlabel="vocabulary V, ids", ylabel="FLOPs for the same text, cheapest = 1")
    axes.set_title("The price of the same text")
    axes.legend(loc="upper left")
    _vocabularies(axes, costs.index, chosen)
    return figure


@style()
def price_by_kind(table: pd.DataFrame) -> Figure:
    """Bars of bytes per token, a group for each kind of text, a bar for each tokenizer; a table of `by_kind`."""
    figure, axes = canvas()
    wide = table.pivot_table(index="kind", columns="tokenizer", values="bytes_per_token", sort=False)
    width = 0.8 / len(wide.columns)
    for place, ((name, covers), colour) in enumerate(zip(wide.items(), CURVES, strict=False)):
        bars = axes.bar(np.arange(len(wide)) + (place - (len(wide.columns) - 1) / 2) * width, covers, width=width,
                        color=colour, label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.axhline(1, color=PALETTE["grey"], linewidth=1, linestyle=":")
    axes.set_xticks(np.arange(len(wide)), wide.index)
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="bytes a token covers")
    axes.set_title("Not all text is equally dear")
    axes.legend(loc="upper right")
    return figure


@style()
def token_lengths(in_vocabulary: Sequence[int], in_text: Sequence[int], longest: int = 16) -> Figure:
    """Bars of token lengths in bytes: the share of the vocabulary, and of the tokens of a text, that are so long."""
    figure, axes = canvas()
    bins = np.arange(1, longest + 1)
    for offset, label, lengths, colour in ((-0.2, "of the vocabulary", in_vocabulary, PALETTE["orange"]),
                                           (0.2, "of the tokens of a text", in_text, PALETTE["blue"])):
        counts = np.bincount(np.minimum(lengths, longest), minlength=longest + 1)[1:]
        axes.bar(bins + offset, 100 * counts / counts.sum(), width=0.4, color=colour, label=label)
    axes.set_xticks(bins, [*map(str, bins[:-1]), f"≥{longest}"])
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="length of a token, bytes", ylabel="share, %")
    axes.set_title("Long tokens fill the table, short tokens fill the text")
    axes.legend(loc="upper right")
    return figure


def _vocabularies(axes: Axes, vocab_sizes: Sequence[int], chosen: int) -> None:
    """A logarithmic axis of vocabularies, the chosen one marked."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(vocab_sizes), [f"{size:,}" for size in vocab_sizes], fontsize=8)
    axes.minorticks_off()
    axes.axvline(chosen, color=PALETTE["red"], linewidth=1, linestyle=":", zorder=1)
    axes.annotate("ours", (chosen, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
                  va="top", fontsize=8, color=PALETTE["red"])
