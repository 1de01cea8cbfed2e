"""Figures of notebook 06: a tied model before training, and learning rates of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinylib.plots.style import PALETTE, PARTS, Figure, canvas, footnote, style

if TYPE_CHECKING:
    import pandas as pd


@style()
def tied_start(table: pd.DataFrame, uniform: float, chosen: float) -> Figure:
    """Loss and own-token logit of a tied model before training, against the std of its table's initialization.

    `table` is indexed by std, with the columns `loss` and `own_logit`; `uniform` is ln V, `chosen` the std of ours.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.2)
    left.plot(table.index, table["loss"], "o-", color=PALETTE["blue"])
    left.axhline(uniform, color=PALETTE["black"], linewidth=1, linestyle="--")
    left.annotate("ln V, a uniform guess", (0.98, uniform), xycoords=("axes fraction", "data"), xytext=(0, -11),
                  textcoords="offset points", ha="right", fontsize=8)
    left.set_ylabel("first loss, nats per token")
    left.set_title("Loss before training")
    right.plot(table.index, table["own_logit"], "o-", color=PALETTE["blue"])
    right.set_ylabel("logit of the token just read")
    right.set_title("Logit of a token for itself")
    for axes in (left, right):
        axes.set(xscale="log", ylim=(0, None), xlabel="std of the table")
        axes.axvline(chosen, color=PALETTE["red"], linewidth=1, linestyle=":")
        axes.annotate("ours", (chosen, 0.92), xycoords=("data", "axes fraction"), xytext=(4, 0),
                      textcoords="offset points", fontsize=8, color=PALETTE["red"])
    return figure


@style()
def rate_curves(table: pd.DataFrame, note: str = "") -> Figure:
    """Bits per byte against a learning rate, a column of `table` for each table that has one; rings mark the best.

    The axis ends a quarter above the best of all.
    """
    figure, axes = canvas(height_in=3.4)
    colours = (PARTS["wte"], PARTS["lm_head"], PALETTE["black"])
    for (name, curve), colour in zip(table.items(), colours, strict=False):
        axes.plot(curve.index, curve, "o-", color=colour, label=name, markersize=4)
        axes.plot(curve.idxmin(), curve.min(), "o", color=colour, markersize=12, markerfacecolor="none")
    axes.set_xscale("log")
    axes.set_xticks(list(table.index), [f"{rate:g}" for rate in table.index])
    axes.minorticks_off()
    axes.set(xlabel="learning rate, before the factor for the width", ylabel="validation, bits per byte",
             ylim=(0.98 * table.min(axis=None), min(1.02 * table.max(axis=None), 1.25 * table.min(axis=None))))
    axes.set_title("Learning rates of the tables")
    figure.legend(loc="outside upper left", ncols=3)
    footnote(figure, note)
    return figure
