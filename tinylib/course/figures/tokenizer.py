"""Figures of notebook 02: compression and cost by vocabulary, bytes a token by kind of text, token lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from tinylib.plots.style import CURVES, PALETTE, PARTS, Figure, canvas, note, style

if TYPE_CHECKING:
    import pandas as pd

    from tinylib.tokenizer import Decision


@style()
def compression_curve(table: pd.DataFrame, blocks: int, chosen: int) -> Figure:
    """Characters per token, and the parameters of one vocabulary table, against the vocabulary.

    `table` has the columns vocab_size, characters_per_token and table_parameters; `blocks` is the number of parameters
    of the blocks, `chosen` the vocabulary of the course.
    """
    figure, (left, right) = canvas(columns=2)
    left.plot(table.vocab_size, table.characters_per_token, "o-", color=PALETTE["blue"])
    left.set(ylim=(0, None), ylabel="characters per token, held out")
    left.set_title("Compression")
    right.plot(table.vocab_size, table.table_parameters / 1e6, "o-", color=PARTS["wte"], label="one table, V·D")
    right.axhline(blocks / 1e6, color=PARTS["blocks"], linestyle="--", label="all blocks, 12·L·D²")
    right.set(ylim=(0, None), ylabel="parameters, millions")
    right.set_title("Size")
    right.legend(loc="upper left")
    for axes in (left, right):
        _vocabulary_axis(axes, table.vocab_size, chosen)
    return figure


@style()
def cost_of_text(costs: pd.DataFrame, chosen: int, decisions: Mapping[str, Decision] | None = None) -> Figure:
    """Training FLOPs for the same text against the vocabulary, relative to the cheapest; a line a column of `costs`.

    `costs` is indexed by vocabulary, one column for each model.  A ring marks the cheapest vocabulary; or, with a
    `Decision` for each column, a thick bar below the curves its 95% confidence interval and a thin bar the
    vocabularies that cost less than 1% more.
    """
    figure, axes = canvas()
    for (name, cost), colour in zip(costs.items(), CURVES, strict=False):
        axes.plot(cost.index, cost / cost.min(), "o-", color=colour, label=name, markersize=4)
        if not decisions:
            axes.plot(cost.idxmin(), 1, "o", color=colour, markersize=11, markerfacecolor="none")
    for place, (found, colour) in enumerate(zip((decisions or {}).values(), CURVES, strict=False)):
        y = 0.8 - 0.15 * place
        axes.plot(found.flat, (y, y), color=colour, linewidth=1)
        axes.plot((found.low, found.high), (y, y), color=colour, linewidth=5, solid_capstyle="butt")
        axes.plot(found.vocab_size, y, "|", color=PALETTE["black"], markersize=9)
    axes.set_ylabel("FLOPs for the same text, cheapest = 1")
    axes.set_title("Training FLOPs for the same text")
    axes.legend(loc="best")
    _vocabulary_axis(axes, costs.index, chosen)
    return figure


@style()
def price_by_kind(table: pd.DataFrame) -> Figure:
    """Bars of bytes per token, a group for each kind of text, a bar for each tokenizer; a table of `by_kind`."""
    figure, axes = canvas()
    wide = table.pivot_table(index="kind", columns="tokenizer", values="bytes_per_token", sort=False)
    groups, width = np.arange(len(wide)), 0.8 / len(wide.columns)
    for place, ((name, sizes), colour) in enumerate(zip(wide.items(), CURVES, strict=False)):
        offset = (place - (len(wide.columns) - 1) / 2) * width
        axes.bar_label(axes.bar(groups + offset, sizes, width, color=colour, label=name), fmt="%.1f", fontsize=8)
    axes.axhline(1, color=PALETTE["grey"], linewidth=1, linestyle=":")
    axes.set_xlim(-0.6, len(wide) - 0.4)
    note(axes, "one byte\nper token", len(wide) - 0.4, 1, (4, 0), annotation_clip=False)
    axes.set_xticks(groups, wide.index, **({"rotation": 40, "ha": "right"} if len(wide) > 6 else {}))
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("bytes per token")
    axes.set_title("Bytes per token by kind of text")
    if len(wide.columns) > 1:
        axes.legend(loc="upper right")
    return figure


@style()
def token_lengths(in_vocabulary: Sequence[int], in_text: Sequence[int]) -> Figure:
    """Histogram of token lengths in bytes, in the vocabulary and in the tokens of a text, each in percent."""
    figure, axes = canvas()
    bins = np.arange(1, 17)    # the last one is for all longer tokens
    for offset, label, lengths, colour in ((-0.2, "vocabulary", in_vocabulary, PALETTE["orange"]),
                                           (0.2, "tokens of a text", in_text, PALETTE["blue"])):
        counts = np.bincount(np.minimum(lengths, bins[-1]), minlength=len(bins) + 1)[1:]
        axes.bar(bins + offset, 100 * counts / counts.sum(), width=0.4, color=colour, label=label)
    axes.set_xticks(bins, [*map(str, bins[:-1]), f"≥{bins[-1]}"])
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="length of a token, bytes", ylabel="share, %")
    axes.set_title("Long tokens fill the vocabulary, short tokens fill the text")
    axes.legend(loc="best")
    return figure


def _vocabulary_axis(axes: Axes, vocab_sizes: Sequence[int], chosen: int) -> None:
    """A logarithmic axis of vocabularies, with a line at the chosen one."""
    axes.set_xscale("log")
    axes.set_xticks(list(vocab_sizes), [f"{size:,}" for size in vocab_sizes], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("vocabulary V, ids")
    axes.axvline(chosen, color=PALETTE["red"], linewidth=1, linestyle=":", zorder=1)
    axes.annotate("ours", (chosen, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
                  va="top", fontsize=8, color=PALETTE["red"])
