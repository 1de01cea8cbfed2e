"""Figures of notebook 05: baselines, text by surprise, where the bits go, train and validation, tasks, decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from tinylib.plots.style import PALETTE, PAPER, Figure, canvas, footnote, ink, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@style()
def bpb_vs_baselines(bits_per_byte: float, table: pd.DataFrame, note: str = "") -> Figure:
    """Bits per byte of baselines beside the model's (left), and the paired differences with their intervals (right).

    `table` is that of `opponents.against`; `note` goes below.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.4, width_in=8.4, sharey=True)
    table = table.sort_values("bits_per_byte", ascending=False)
    place = np.arange(len(table))
    left.barh(place, table["bits_per_byte"], color=PALETTE["grey"], height=0.6)
    for at, value in zip(place, table["bits_per_byte"], strict=True):
        left.annotate(f"{value:.3f}", (max(value, bits_per_byte), at), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=8, bbox=PAPER)
    left.axvline(bits_per_byte, color=PALETTE["blue"], label=f"the model: {bits_per_byte:.3f}")
    left.set_yticks(place, table.index)
    left.set(xlabel="bits per byte", xlim=(0, 1.15 * table["bits_per_byte"].max()))
    left.grid(axis="y", visible=False)
    left.set_title("Baselines")
    left.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    _intervals(right, place, table["difference"], table["low"], table["high"])
    right.axvline(0, color=PALETTE["black"], linewidth=1)
    right.set(xlabel="model less baseline, bits per byte")
    right.set_title("Paired difference, 95%")
    right.invert_yaxis()
    footnote(figure, note)
    return figure


def _intervals(axes: Axes, place: np.ndarray, value: pd.Series, low: pd.Series, high: pd.Series,
               label: str = "") -> None:
    axes.errorbar(value, place, xerr=[value - low, high - value], fmt="o", color=PALETTE["blue"], capsize=3,
                  markersize=4, label=label or None)


@style()
def text_by_surprise(pieces: Sequence[str], bits: Sequence[float], columns: int = 88) -> Figure:
    """Text with each token's background colored by its bits: white is sure, dark a surprise; wrapped at `columns`."""
    most, rows, row, column = 12, [], 0, 0
    for piece, price in zip(pieces, bits, strict=True):
        for part in piece.replace("\t", "    ").splitlines(keepends=True):
            shown = part.replace("\n", "↵")
            if column + len(shown) > columns:
                row, column = row + 1, 0
            rows.append((row, column, shown, price))
            row, column = (row + 1, 0) if part.endswith("\n") else (row, column + len(shown))
    figure, axes = canvas(height_in=0.55 + 0.175 * (row + 1))
    size = 72 * 6.91 / columns / 0.602    # in points: a character is as wide as its box
    colours = matplotlib.colormaps["Oranges"]
    for at, start, shown, price in rows:
        colour = colours(min(1, price / most) * 0.85)
        axes.barh(at, len(shown), left=start, height=1, color=colour)
        axes.text(start, at, shown.replace("$", r"\$"), family="monospace", fontsize=size, va="center",
                  color=ink(colour))
    axes.set(xlim=(0, columns), ylim=(row + 0.5, -0.5))
    axes.set_axis_off()
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, most), matplotlib.colors.ListedColormap(
        colours(np.linspace(0, 0.85, 64))))
    figure.colorbar(scale, ax=axes, location="bottom", shrink=0.4, aspect=40, pad=0.01,
                    label=f"bits of the token ({most} or more is darkest)")
    return figure


@style()
def document_scatter(table: pd.DataFrame, other: str) -> Figure:
    """Bits per byte of each document, the model's against those of `other`; larger documents are larger points.

    `table` has the columns `bytes`, `model` and `other`, the last two in bits per byte.
    """
    figure, axes = canvas(height_in=3.8)
    wins = table["model"] < table["other"]
    for chosen, colour, label in ((wins, "blue", "model needs fewer bits"), (~wins, "red", f"{other} needs fewer")):
        part = table[chosen]
        axes.scatter(part["other"], part["model"], s=2 * np.sqrt(part["bytes"]), color=PALETTE[colour], alpha=0.55,
                     linewidth=0, label=f"{label}: {len(part)}")
    ends = [0, 1.1 * table[["model", "other"]].max().max()]
    axes.plot(ends, ends, color=PALETTE["black"], linewidth=1, linestyle="--", label="equal")
    axes.set(xlim=ends, ylim=ends, xlabel=f"{other}, bits per byte", ylabel="the model, bits per byte")
    axes.set_title("Bits per byte of each document")
    legend = figure.legend(loc="outside lower center", ncols=3)
    for handle in legend.legend_handles[:2]:
        handle.set_sizes([40])
    return figure


@style()
def where_bits_go(by_seen: pd.Series, by_count: pd.DataFrame, by_source: pd.DataFrame) -> Figure:
    """Bits per byte by number of preceding tokens, by how often the token was in training, and by source.

    `by_seen` is indexed by the largest number of tokens of each bin; the others have the columns `model` and `5-gram`.
    """
    figure, (left, middle, right) = canvas(columns=3, height_in=3.4, width_in=8.4)
    left.plot(by_seen.index, by_seen, "o-", color=PALETTE["blue"])
    left.set_xscale("log", base=2)
    left.set_xticks(by_seen.index[::2], [f"{seen:,}" for seen in by_seen.index[::2]], fontsize=8)
    left.minorticks_off()
    left.set(ylim=(0, 1.1 * by_seen.max()), xlabel="preceding tokens, up to", ylabel="bits per byte")
    left.set_title("By position")
    for axes, table, label in ((middle, by_count, "uses of the token in training"), (right, by_source, "")):
        place = np.arange(len(table))
        axes.barh(place - 0.2, table["model"], height=0.4, color=PALETTE["blue"], label="the model")
        axes.barh(place + 0.2, table["5-gram"], height=0.4, color=PALETTE["grey"], label="5-gram")
        axes.set_yticks(place, table.index, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="bits per byte", ylabel=label)
    middle.set_title("By frequency")
    right.set_title("Largest sources")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


@style()
def read_and_unread(table: pd.DataFrame, lr: pd.Series) -> Figure:
    """Bits per byte of training windows by the step that reads them, above the learning rate of each step.

    `table` is indexed by the middle step of each group of batches, with columns `bits_per_byte`, `low`, `high`.  Steps
    after the last of `lr` were never made.
    """
    figure, (upper, lower) = canvas(rows=2, height_in=3.8, sharex=True, height_ratios=[3, 1])
    read = table.index < lr.index[-1]
    for chosen, colour, label in ((read, "blue", "read once in training"), (~read, "orange", "not read")):
        part = table[chosen]
        upper.errorbar(part.index, part["bits_per_byte"], [part["bits_per_byte"] - part["low"],
                       part["high"] - part["bits_per_byte"]], fmt="o", color=PALETTE[colour], capsize=3, label=label)
    lower.plot(lr.index, lr, color=PALETTE["grey"])
    for axes in (upper, lower):
        axes.axvline(lr.index[-1], color=PALETTE["black"], linewidth=1, linestyle="--")
    upper.set(ylabel="bits per byte")
    lower.set(xlabel="optimizer step that reads the windows (dashed: the last made)", ylim=(0, 1.1 * lr.max()),
              ylabel="learning\nrate / peak")
    upper.set_title("The trained model on windows of the training documents")
    upper.legend(loc="lower left")
    return figure


@style()
def accuracy_and_chance(tables: Mapping[str, pd.DataFrame], note: str = "") -> Figure:
    """Accuracy on tasks with 95% intervals and chance, one panel per entry of `tables`, sorted by distance to chance.

    Each table has the columns `accuracy`, `low`, `high` and `chance`.  Filled: the interval excludes chance.  Of a long
    table only the ends are shown, and subject-verb agreement; a dotted line is where tasks are left out.
    """
    parts = {name: _ends(table) for name, table in tables.items()}
    figure, panels = canvas(columns=len(tables), height_in=1.1 + 0.165 * max(map(len, parts.values())), squeeze=False)
    for axes, (name, table) in zip(panels[0], parts.items(), strict=True):
        place = np.arange(len(table))
        for gap in np.flatnonzero(np.diff(table["rank"]) > 1):
            axes.axhline(gap + 0.5, color=PALETTE["grey"], linewidth=1, linestyle=":")
        axes.hlines(place, table["low"], table["high"], color=PALETTE["blue"], linewidth=1)
        clear = (table["low"] > table["chance"]) | (table["high"] < table["chance"])
        for chosen, fill, label in ((clear, PALETTE["blue"], "95% interval excludes chance"),
                                    (~clear, "white", "95% interval contains chance")):
            axes.plot(table["accuracy"][chosen], place[chosen], "o", color=PALETTE["blue"], markerfacecolor=fill,
                      markersize=4, label=label)
        axes.plot(table["chance"], place, "|", color=PALETTE["red"], markersize=7, markeredgewidth=1.5, label="chance")
        names = [shorten(task.replace("_", " "), 42, placeholder=" …").replace(" ", "_") for task in table.index]
        axes.set_yticks(place, names, fontsize=8)
        axes.set(ylim=(len(table) - 0.4, -0.6), xlim=(-0.02, 1.02), xticks=(0, 0.5, 1), xlabel="accuracy")
        axes.grid(axis="y", visible=False)
        axes.set_title(name if len(table) == len(tables[name]) else f"{name}, {len(table)} of {len(tables[name])}")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    footnote(figure, note)
    return figure


def _ends(table: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """Tasks by distance to chance and their `rank`: all, or the `most` at either end and those that the text names."""
    apart = (table["accuracy"] - table["chance"]).sort_values(ascending=False)
    table = table.loc[apart.index].assign(rank=np.arange(len(table)))
    near = table["rank"].between(most, len(table) - most - 1) & ~table.index.str.contains("subject_verb_agreement")
    return table if len(table) <= 2 * most else table[~near]


@style()
def decoding_time(times: pd.DataFrame) -> Figure:
    """Milliseconds per token by length of the text, `cached` and `whole`, with a KV cache and without."""
    figure, axes = canvas(height_in=2.8)
    for column, colour, label in (("whole", "orange", "no cache: the whole text goes through"),
                                  ("cached", "blue", "KV cache: one token goes through")):
        axes.plot(times.index, times[column], "o-", color=PALETTE[colour], label=label)
    axes.set(xlabel="tokens in the text so far", ylabel="ms for the next token", xlim=(0, None), ylim=(0, None))
    axes.set_title("Time of one more token")
    axes.legend()
    return figure
