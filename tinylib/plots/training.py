"""Training curves of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tinylib.plots.style import CURVES, PALETTE, Figure, canvas, footnote, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLOURS = CURVES[1:] + CURVES[:1]
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
                       textcoords="offset points", color=colour)
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
    if note:
        footnote(figure, note)
    return figure


def _smooth(losses: pd.Series) -> pd.Series:
    """A mean over about a twentieth of the points."""
    return losses.rolling(max(1, len(losses) // 20), min_periods=1).mean()


def _name_axes(left: Axes, right: Axes) -> None:
    left.set(xlabel="optimizer steps", ylabel="loss, nats per token")
    right.set(xlabel="optimizer steps", ylabel="bits per byte")
    left.set_title("Training loss")
    right.set_title("Validation")
