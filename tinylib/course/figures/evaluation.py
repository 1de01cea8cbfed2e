"""Figures of notebook 05: bits per byte against compressors, by document, by position and by kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tinylib.plots.style import PALETTE, Figure, canvas, footnote, style

if TYPE_CHECKING:
    import pandas as pd


@style()
def bpb_vs_compressors(evaluations: pd.Series, final: tuple[float, float, float], opponents: Mapping[str, float],
                       note: str = "") -> Figure:
    """Bits per byte of a run by step, with those of its opponents as dashed lines.

    `final` is the model on the text that they were given, with low and high of its confidence interval; `note` goes
    below.
    """
    figure, axes = canvas(height_in=3.6)
    last, (value, low, high) = evaluations.index[-1], final
    axes.plot(evaluations.index, evaluations, "o-", color=PALETTE["blue"], markersize=4, label="the model, in training")
    axes.errorbar([1.04 * last], [value], [[value - low], [high - value]], fmt="D", color=PALETTE["red"], capsize=4,
                  markersize=6, label=f"the model, on the opponents' text: {value:.2f}")
    place, apart = math.inf, 0.055 * max(*evaluations, *opponents.values())    # a line of text
    for name, line in sorted(opponents.items(), key=lambda pair: -pair[1]):
        place = min(line, place - apart)
        axes.axhline(line, color=PALETTE["black"], linewidth=1.2, linestyle="--")
        axes.annotate(f"{line:.2f} {name}", (1, place), xycoords=("axes fraction", "data"), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=8)
    axes.set(ylim=(0, None), xlim=(-0.02 * last, 1.15 * last), xlabel="optimizer steps", ylabel="bits per byte")
    axes.set_title("Held-out bits per byte: the model and its opponents")
    axes.legend(loc="lower left")
    footnote(figure, note)
    return figure


@style()
def document_scatter(table: pd.DataFrame) -> Figure:
    """Bits per byte of each document, the model's against those of `xz`; larger documents are larger points.

    `table` has the columns `bytes`, `model` and `xz`, the last two in bits per byte.
    """
    figure, axes = canvas(height_in=3.8)
    wins = table["model"] < table["xz"]
    for chosen, colour, label in ((wins, "blue", "model needs fewer bits"), (~wins, "red", "xz needs fewer bits")):
        part = table[chosen]
        axes.scatter(part["xz"], part["model"], s=2 * np.sqrt(part["bytes"]), color=PALETTE[colour], alpha=0.55,
                     linewidth=0, label=f"{label}: {len(part)}")
    ends = [0.9 * table[["model", "xz"]].min().min(), 1.15 * table[["model", "xz"]].max().max()]
    axes.plot(ends, ends, color=PALETTE["black"], linewidth=1, linestyle="--", label="equal")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(xlim=ends, ylim=(ends[0], 1.3 * table["model"].max()), xlabel="xz -9, bits per byte",
             ylabel="the model, bits per byte")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("Bits per byte of each document")
    legend = figure.legend(loc="outside lower center", ncols=3)
    for handle in legend.legend_handles[:2]:
        handle.set_sizes([40])
    return figure


@style()
def where_bits_go(by_seen: pd.Series, by_kind: pd.DataFrame) -> Figure:
    """Bits per byte by number of preceding tokens (left), and by kind of document beside `xz` (right).

    `by_seen` is indexed by the largest number of tokens of each bin, `by_kind` has the columns `model` and `xz`.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.6)
    left.plot(by_seen.index, by_seen, "o-", color=PALETTE["blue"])
    left.set_xscale("log", base=2)
    left.set_xticks(by_seen.index[::2], [f"{seen:,}" for seen in by_seen.index[::2]])
    left.minorticks_off()
    left.set(ylim=(0, 1.1 * by_seen.max()), xlabel="preceding tokens in the window, up to", ylabel="bits per byte")
    left.set_title("By position")
    place = np.arange(len(by_kind))
    right.barh(place - 0.2, by_kind["model"], height=0.4, color=PALETTE["blue"], label="the model")
    right.barh(place + 0.2, by_kind["xz"], height=0.4, color=PALETTE["grey"], label="xz -9, each document")
    right.set_yticks(place, by_kind.index, fontsize=8)
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.set_xlabel("bits per byte")
    right.set_title("By kind")
    figure.legend(loc="outside lower right", ncols=2)
    return figure
