"""Figures of runs: training curves, of ended and of running ones, and paired differences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinylib.plots.style import CURVES, PALETTE, Figure, canvas, footnote, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLOURS = [CURVES[1], CURVES[0], *CURVES[2:]]
_FAINT: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.35}
"""Each point as it is, behind the mean over some of them."""


@style()
def training_curves(runs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], note: str = "",
                    marks: Mapping[int, str] | None = None) -> Figure:
    """Training loss (each step, and a moving average over a twentieth of them) and bits per byte, by name of the run.

    A run is its steps and its evaluations, each indexed by step, as `RunDirectory.metrics` gives them; `marks` are
    vertical lines: step and text.
    """
    figure, (left, right) = canvas(columns=2)
    for (name, (steps, evaluations)), colour in zip(runs.items(), _COLOURS, strict=False):
        left.plot(steps.index, steps["loss"], color=colour, **_FAINT)
        left.plot(steps.index, _smooth(steps["loss"]), color=colour, label=name)
        right.plot(evaluations.index, evaluations["val_bpb"], "o-", color=colour, label=name, markersize=4)
        last = evaluations["val_bpb"].iloc[-1]
        above = last == max(other["val_bpb"].iloc[-1] for _, other in runs.values())
        right.annotate(f"{last:.3f}", (evaluations.index[-1], last), xytext=(6, 2 if above else -8), fontsize=8,
                       textcoords="offset points")
    longest = max(steps.index[-1] for steps, _ in runs.values())
    _name_axes(left, right)
    left.set(xlim=(0, longest))
    right.set(xlim=(0, 1.15 * longest))
    right.margins(y=0.15)
    left.legend(loc="upper right", frameon=bool(marks), facecolor="white", edgecolor="none", framealpha=1)
    if marks:
        low, high = left.get_ylim()
        left.set_ylim(low - 0.12 * (high - low), high)    # room for the marks' texts below the curves
    for step, what in (marks or {}).items():
        left.axvline(step, color=PALETTE["black"], linewidth=1, linestyle=":")
        left.annotate(what, (step, 0.03), xycoords=("data", "axes fraction"), xytext=(4, 0), fontsize=8,
                      textcoords="offset points")
    footnote(figure, note)
    return figure


@style()
def paired_differences(differences: pd.DataFrame, intervals: Mapping[str, tuple[float, float]],
                       note: str = "") -> Figure:
    """Paired differences in bits per byte: a point a seed, a bar for the confidence interval of their mean.

    `differences` has a row a seed and a column a pair; `intervals` has low and high for each column to draw.
    """
    figure, axes = canvas(height_in=1.45 + 0.55 * len(intervals))
    _difference_rows(axes, differences, intervals, {name: place for place, name in enumerate(intervals)})
    _name_rows(axes, list(intervals))
    axes.set_xlabel("difference, bits per byte; left of zero the first is better")
    axes.set_title("Paired differences: same seed, same batches")
    _name_marks(figure, axes)
    footnote(figure, note)
    return figure


@style()
def arm_differences(panels: Mapping[str, Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]], note: str = "") -> Figure:
    """Differences in bits per byte to the reference, a row an arm: a point a seed, a bar an interval, by colour.

    Each panel has blocks by the name of their bars, such as a budget, and all panels have the same names.  A block is
    its `experiments.differences` and its `experiments.compare`; one of a single arm shows the distance of each seed
    from their mean.
    """
    arms = {title: list(dict.fromkeys(arm for differences, _ in blocks.values() for arm in differences))
            for title, blocks in panels.items()}
    rows = [max(1, len(names)) for names in arms.values()]
    row_in = 0.2 + 0.12 * max(map(len, panels.values()))
    figure, places = canvas(rows=len(panels), height_in=0.25 + sum(0.9 + row_in * count for count in rows),
                            height_ratios=[0.5 + count for count in rows], sharex=True, squeeze=False)
    for axes, (title, blocks) in zip(places[:, 0], panels.items(), strict=True):
        for number, (bar, (differences, compared)) in enumerate(blocks.items()):
            shifted = {arm: arms[title].index(arm) + (number - (len(blocks) - 1) / 2) * 0.36 for arm in differences}
            intervals = {arm: tuple(compared.loc[arm, ["low", "high"]]) for arm in differences}
            _difference_rows(axes, differences, intervals, shifted, _COLOURS[number], bar)
        _name_rows(axes, arms[title])
        axes.tick_params(labelbottom=True)
        axes.set_title(title[:1].upper() + title[1:])
    _name_marks(figure, places[0, 0])
    axes.set_xlabel("difference to the reference, bits per byte; left of zero is better")
    footnote(figure, note)
    return figure


def _difference_rows(axes: Axes, differences: pd.DataFrame, intervals: Mapping[str, tuple[float, float]],
                     places: Mapping[str, float], colour: str = PALETTE["blue"], bar: str = "95% interval") -> None:
    """A row for each interval: its bar, a point a seed, a mark at their mean."""
    for name, (low, high) in intervals.items():
        place = places[name]
        axes.plot([low, high], [place, place], color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt", label=bar)
        axes.plot(differences[name], [place] * len(differences), "o", color=colour, markersize=5, label="a seed")
        axes.plot(differences[name].mean(), place, "|", color=PALETTE["black"], markersize=14, markeredgewidth=2,
                  label="mean")


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.axvline(0, color=PALETTE["black"], linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _name_marks(figure: Figure, axes: Axes) -> None:
    """A legend of the marks of `_difference_rows`: each name once, bars first."""
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    found |= {name: found.pop(name) for name in ("a seed", "mean")}
    figure.legend(found.values(), found, loc="outside upper right", ncols=len(found), markerscale=0.7)


class LiveCurves:
    """Training loss and bits per byte of running trainings, in one figure that is made once and given new points.

    `png` neither reads nor sets rcParams, so a thread may draw while the notebook draws something else.
    """

    @style()
    def __init__(self, names: Sequence[str]) -> None:
        self.figure, self.axes = canvas(columns=2, height_in=2.5)
        self.figure.set_layout_engine("none")    # the constrained layout measures every text at each drawing
        left, right = self.axes
        _name_axes(left, right)
        self._lines = [(left.plot([], [], color=colour, markersize=4)[0],
                        right.plot([], [], "o-", color=colour, markersize=4)[0])
                       for _, colour in zip(names, itertools.cycle(_COLOURS), strict=False)]
        for text in left.legend([line for line, _ in self._lines], names, loc="upper right").get_texts():
            text.set_parse_math(False)    # a name may hold dollars
        for axes, start in ((left, 0.075), (right, 0.585)):
            axes.set_position((start, 0.2, 0.4, 0.68))
            # Ticks that are made later would take their look from the rcParams of that moment.
            axes.tick_params(labelsize=9, grid_color="#DDDDDD", grid_linewidth=0.6)

    def png(self, runs: Sequence[tuple[pd.Series, pd.Series]]) -> bytes:
        """The picture: of each run the losses (a running mean) and the bits per byte, each indexed by step."""
        for (loss, score), (losses, scores) in zip(self._lines, runs, strict=True):
            loss.set_data(losses.index, _smooth(losses))
            loss.set_marker("o" if len(losses) == 1 else "")    # a line of one point is invisible
            score.set_data(scores.index, scores)
        self.axes[1].set_visible(any(len(scores) for _, scores in runs))
        longest = max((losses.index[-1] for losses, _ in runs if len(losses)), default=1)
        for axes in self.axes:
            axes.set_xlim(0, 1.02 * longest)
            axes.relim()
            axes.autoscale_view(scalex=False)
        return self.figure.png(colours=64, optimize=False)


def _smooth(losses: pd.Series) -> pd.Series:
    """A mean over about a twentieth of the points."""
    return losses.rolling(max(1, len(losses) // 20), min_periods=1).mean()


def _name_axes(left: Axes, right: Axes) -> None:
    left.set(xlabel="optimizer steps", ylabel="loss, nats per token")
    right.set(xlabel="optimizer steps", ylabel="bits per byte")
    left.set_title("Training loss")
    right.set_title("Validation")
