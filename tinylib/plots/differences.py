"""Paired differences of runs over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tinylib.plots.style import PALETTE, Figure, canvas, footnote, style

if TYPE_CHECKING:
    import pandas as pd


@style()
def paired_differences(differences: pd.DataFrame, intervals: Mapping[str, tuple[float, float]],
                       note: str = "") -> Figure:
    """Paired differences in bits per byte: a point a seed, a bar for the confidence interval of their mean.

    `differences` has a row a seed and a column a pair; `intervals` has low and high for each column to draw.
    """
    figure, axes = canvas(height_in=1.2 + 0.55 * len(intervals))
    for place, (name, (low, high)) in enumerate(intervals.items()):
        axes.plot([low, high], [place, place], color=PALETTE["blue"], linewidth=6, alpha=0.3, solid_capstyle="butt")
        axes.plot(differences[name], [place] * len(differences), "o", color=PALETTE["blue"], markersize=5)
        axes.plot(differences[name].mean(), place, "|", color=PALETTE["black"], markersize=18, markeredgewidth=2)
    axes.axvline(0, color=PALETTE["black"], linewidth=1)
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set_ylim(len(intervals) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("difference, bits per byte; left of zero the first is better")
    axes.set_title("Paired differences: same seed, same batches")
    if note:
        footnote(figure, note)
    return figure
