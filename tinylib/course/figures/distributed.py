"""Figures of notebook 04: the slices of a global batch, the learning-rate schedule, who outlives whom in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from tinylib.config import TrainConfig
from tinylib.plots.style import CURVES, PALETTE, Figure, canvas, ink, note, style

_RANKS = [PALETTE[name] for name in ("blue", "orange", "green", "purple", "sky", "red", "yellow", "grey")]
_ROLES = {"kernel": PALETTE["sky"], "torchrun": PALETTE["yellow"], "ranks": PALETTE["orange"],
          "run directory": PALETTE["green"]}


@style()
def rank_rows(total_rows: int, device_batch_size: int, world_sizes: Sequence[int]) -> Figure:
    """The rows of one global batch by rank and micro-batch; a bar for each world size."""
    figure, axes = canvas(height_in=0.9 + 0.55 * len(world_sizes))
    for place, world_size in enumerate(world_sizes):
        for part in range(total_rows // device_batch_size):
            accumulation, rank = divmod(part, world_size)
            colour = _RANKS[rank % len(_RANKS)]
            bar = axes.barh(place, device_batch_size, left=part * device_batch_size, height=0.72, edgecolor="white",
                            linewidth=1.5, color=colour)
            if total_rows // device_batch_size <= 16:
                axes.bar_label(bar, [f"rank {rank}\nmicro {accumulation + 1}"], label_type="center", fontsize=8,
                               color=ink(colour))
    axes.set_yticks(range(len(world_sizes)), [f"{size} process{'es' * (size > 1)}" for size in world_sizes])
    axes.set(xlabel="row of the global batch", xlim=(0, total_rows))
    axes.set_title("The same global batch on any number of processes")
    axes.invert_yaxis()
    axes.grid(visible=False)
    return figure


@style()
def schedules(configs: Mapping[str, TrainConfig]) -> Figure:
    """Factor of all learning rates over a run: warm-up, constant, warm-down; a line for each configuration."""
    from tinylib.optim import learning_rate  # it needs torch

    figure, axes = canvas(height_in=2.6)
    for (name, config), colour, dash in zip(configs.items(), CURVES, ("-", "--", ":"), strict=False):
        share = [100 * (step + 1) / config.steps for step in range(config.steps)]
        axes.plot(share, [learning_rate(step, config) for step in range(config.steps)], dash, color=colour, label=name)
    axes.set(xlabel="% of the steps", ylabel="factor of the learning rates", xlim=(0, 100), ylim=(0, 1.08))
    axes.set_title("Warm-up, constant, warm-down")
    axes.legend(loc="lower center")
    return figure


@style()
def run_life() -> Figure:
    """Processes and folder of a launched run: above who starts, writes and reads, below who outlives whom."""
    figure, (above, below) = canvas(rows=2, height_in=6.0, gridspec_kw={"height_ratios": [3, 2]})
    for axes in (above, below):
        axes.set(xlim=(0, 100), ylim=(0, 60), yticks=[], xticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    above.set_title("Who starts, writes and reads")
    _box(above, (1, 36), (20, 20), "kernel", "this notebook:\nlaunch, watch, stop")
    _box(above, (42, 36), (18, 20), "torchrun", "a session\nof its own")
    _box(above, (80, 48), (19, 9), "ranks", "", "rank 0")
    _box(above, (80, 33), (19, 9), "ranks", "", "rank 1")
    above.add_patch(FancyBboxPatch((78, 30), 22, 29, boxstyle="round,pad=0,rounding_size=2", facecolor="none",
                                   edgecolor=PALETTE["grey"], linestyle="--", clip_on=False))    # both ranks
    _box(above, (21, 1), (62, 18), "run directory", "config.json   status.json   metrics.jsonl\n"
         "checkpoints/   logs/   pids/")
    for start, end, text, place in (
            ((21, 46), (42, 46), "starts, lets go", (31.5, 49)), ((60, 49), (78, 52), "starts", (69, 54)),
            ((60, 43), (78, 38), "watches", (69, 37)), ((26, 19), (14, 36), "reads metrics\nand status", (9, 25)),
            ((18, 36), (32, 19), "writes\nconfig.json", (35, 29)),
            ((88, 30), (72, 19), "each its log and pid;\nrank 0 all else", (66, 27))):
        _arrow(above, start, end)
        note(above, text, *place, ha="center")
    above.annotate("", (89, 42), (89, 48), arrowprops={"arrowstyle": "<->", "color": PALETTE["black"]})
    note(above, "all-reduce", 90.5, 45)
    below.set_title("Who outlives whom")
    note(below, "time", 0, 58)
    _arrow(below, (16, 58), (99, 58))
    lives = {"kernel": [(2, 34), (48, 20)], "torchrun": [(10, 66)], "ranks": [(14, 60)], "run directory": [(9, 91)]}
    for place, (role, spans) in enumerate(lives.items()):
        y = 46 - 13 * place
        below.broken_barh([(16 + 0.83 * left, 0.83 * width) for left, width in spans], (y, 8), color=_ROLES[role])
        note(below, role, 0, y + 4)
    for at, text in ((10, "launch"), (36, "kernel\nrestarted"), (48, "attach"), (74, "last step")):
        below.axvline(16 + 0.83 * at, color=PALETTE["black"], linewidth=0.8, linestyle=":", ymax=0.92)
        note(below, text, 16 + 0.83 * at, 1, ha="center")
    return figure


def _box(axes: Axes, corner: tuple[float, float], size: tuple[float, float], role: str, text: str,
         title: str | None = None) -> None:
    """A rounded box with a bold title and a text under it."""
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=2", facecolor=_ROLES[role],
                                  edgecolor="none"))
    x, top, colour = corner[0] + size[0] / 2, corner[1] + size[1], ink(_ROLES[role])
    middle = corner[1] + size[1] / 2
    axes.text(x, top - 4.5 if text else middle, title or role, ha="center", va="center", weight="bold", color=colour)
    axes.text(x, middle - 3, text, ha="center", va="center", fontsize=8, color=colour)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": PALETTE["black"], "shrinkA": 0,
                                              "shrinkB": 0})
