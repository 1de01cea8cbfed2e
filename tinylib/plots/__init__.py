"""Figures of the reader's own configurations, runs and tables, in one style and one palette.

A figure is a function under `@style()` that asks `canvas` for axes, names both axes with their units and returns
the figure, which a notebook shows.  No pyplot: nothing is global, and no backend is chosen.
"""

from tinylib.plots.bars import layer_profile, memory_parts, parameter_split
from tinylib.plots.plane import depth_width_plane
from tinylib.plots.style import CURVES, PALETTE, PARTS, Figure, canvas, footnote, human, ink, style
from tinylib.plots.training import arm_differences, paired_differences, training_curves

__all__ = [
    "CURVES", "PALETTE", "PARTS", "Figure", "arm_differences", "canvas", "depth_width_plane", "footnote",
    "human", "ink", "layer_profile", "memory_parts", "paired_differences", "parameter_split",
    "style", "training_curves",
]
