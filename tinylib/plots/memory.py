"""Memory of a training step by part."""

from __future__ import annotations

from collections.abc import Mapping

from tinylib.checks import check_choice, raise_if
from tinylib.hardware import ACCELERATORS
from tinylib.plots.marks import stacked_bars
from tinylib.plots.style import PALETTE, Figure, canvas, style
from tinylib.sizing import Memory

_STAYS = ("weights", "gradients", "optimizer")
_MOMENTS = (("activations", "loss"), ("activations", "recomputed"), ("update",))
"""Parts of `Memory` that exist at the same time, besides those that stay."""
_COLOURS: dict[str, str] = {
    "weights": PALETTE["blue"], "gradients": PALETTE["sky"], "optimizer": PALETTE["green"],
    "activations": PALETTE["orange"], "recomputed": PALETTE["red"], "loss": PALETTE["yellow"],
    "update": PALETTE["purple"]}
"""Parts of `Memory` in the order of a bar."""


@style()
def memory_parts(cases: Mapping[str, Memory], device: str | None = None) -> Figure:
    """Stacked bars of the bytes of a training step by part; with `device`, a line at the memory it is sold with.

    A bar is the peak, `Memory.total`: what stays, and the largest of three moments (activations and loss, activations
    and what is recomputed, the optimizer's update); the other two moments are not drawn.  Raises ConfigError for a
    device not in ACCELERATORS.

    >>> from tinylib import config, sizing
    >>> memory_parts({"micro": sizing.memory(config.PRESETS["micro"], 1)}).axes[0].get_xlabel()
    'memory of one process, MB'
    """
    raise_if("memory_parts", [None if device is None else check_choice("device", device, ACCELERATORS)])
    room = None if device is None else ACCELERATORS[device].memory_bytes
    figure, axes = canvas(height_in=1.1 + 0.34 * len(cases))
    size, unit = (1e9, "GB") if max(case.total for case in cases.values()) >= 1e9 else (1e6, "MB")
    parts = {part: [_at_peak(case, part) / size for case in cases.values()] for part in _COLOURS}
    ends = [f"{_digits(case.total / size)} {unit}{', too much' * (room is not None and case.total > room)}"
            for case in cases.values()]
    stacked_bars(axes, list(cases), {part: sizes for part, sizes in parts.items() if any(sizes)}, _COLOURS,
                 lambda part, _: _digits(part), ends, reach=1.06 * (room or 0) / size)
    if room is not None:
        axes.axvline(room / size, color=PALETTE["black"], linewidth=1.4, linestyle="--")
        axes.annotate(f"{device}: {room / size:g} {unit}", (room / size, 1), xycoords=("data", "axes fraction"),
                      xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xlabel(f"memory of one process, {unit}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(_COLOURS),
                  columnspacing=1.2, handlelength=1.4)
    return figure


def _at_peak(case: Memory, part: str) -> int:
    """Bytes of a part at the peak; 0 for a part of another moment."""
    largest = max(_MOMENTS, key=lambda moment: sum(getattr(case, one) for one in moment))
    return getattr(case, part) if part in largest or part in _STAYS else 0


def _digits(value: float) -> str:
    """Format with three digits.

    >>> _digits(11), _digits(0.25), _digits(1234)
    ('11.0', '0.250', '1234')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")
