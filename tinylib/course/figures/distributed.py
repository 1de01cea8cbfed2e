"""Figure of notebook 04: how ranks and accumulation steps slice one global batch."""

from __future__ import annotations

from collections.abc import Sequence

from tinylib.plots.style import PALETTE, Figure, canvas, ink, style

_RANKS = [PALETTE[name] for name in ("blue", "orange", "green", "purple", "sky", "red", "yellow", "grey")]


@style()
def rank_rows(total_rows: int, device_batch_size: int, world_sizes: Sequence[int]) -> Figure:
    """The rows of one global batch by rank and accumulation step; a bar for each world size."""
    figure, axes = canvas(height_in=0.9 + 0.55 * len(world_sizes))
    for place, world_size in enumerate(world_sizes):
        for part in range(total_rows // device_batch_size):
            accumulation, rank = divmod(part, world_size)
            colour = _RANKS[rank % len(_RANKS)]
            bar = axes.barh(place, device_batch_size, left=part * device_batch_size, height=0.72, edgecolor="white",
                            linewidth=1.5, color=colour)
            if total_rows // device_batch_size <= 16:
                axes.bar_label(bar, [f"rank {rank}\nstep {accumulation + 1}"], label_type="center", fontsize=8,
                               color=ink(colour))
    axes.set_yticks(range(len(world_sizes)), [f"{size} process{'es' * (size > 1)}" for size in world_sizes])
    axes.set(xlabel="row of the global batch", xlim=(0, total_rows))
    axes.set_title("The same global batch on any number of processes")
    axes.invert_yaxis()
    axes.grid(visible=False)
    return figure
