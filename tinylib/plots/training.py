"""Who takes which rows, and how a run went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinylib.plots.style import CURVES, PALETTE, Figure, canvas, footnote, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLOURS = CURVES[1:] + CURVES[:1]
_FAINT: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.35}
"""Each point as it is, behind the mean over some of them."""


@style()
def rank_rows(total_rows: int, device_batch_size: int, world_sizes: Sequence[int]) -> Figure:
    """Which rank takes which rows of one global batch, in which accumulation step; a bar for each world size."""
    figure, axes = canvas(height_in=0.9 + 0.55 * len(world_sizes))
    colours = [PALETTE[name] for name in ("blue", "orange", "green", "purple", "sky", "red", "yellow", "grey")]
    for place, world_size in enumerate(world_sizes):
        for part in range(total_rows // device_batch_size):
            accumulation, rank = divmod(part, world_size)
            axes.barh(place, device_batch_size, left=part * device_batch_size, height=0.72, edgecolor="white",
                      linewidth=1.5, color=colours[rank % len(colours)])
            if total_rows // device_batch_size <= 16:
                axes.text((part + 0.5) * device_batch_size, place, f"rank {rank}\nstep {accumulation + 1}",
                          ha="center", va="center", fontsize=8, color="black" if rank % 8 in (1, 4, 6) else "white")
    axes.set_yticks(range(len(world_sizes)), [f"{size} process{'es' * (size > 1)}" for size in world_sizes])
    axes.set(xlabel="row of the global batch", xlim=(0, total_rows))
    axes.set_title("One batch, however it is shared out")
    axes.invert_yaxis()
    axes.grid(visible=False)
    return figure


@style()
def training_curves(runs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], note: str = "",
                    marks: Mapping[int, str] | None = None) -> Figure:
    """Training loss (each step, and a mean over about a twentieth of them) and bits per byte, by name of the run.

    A run is its metrics and its evaluations, each indexed by step, as `Run.metrics` gives them; `marks` says by step
    what began there.
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
        left.set_ylim(low - 0.12 * (high - low), high)    # room for what is said below the curves
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
    left.set(xlabel="optimizer steps", ylabel="training loss, nats per token")
    right.set(xlabel="optimizer steps", ylabel="validation, bits per byte")
    left.set_title("What is minimised")
    right.set_title("What we judge by")
