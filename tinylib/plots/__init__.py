"""Figures from tables and records: one style, one palette that colour-blind readers can tell apart.

A figure is a function under `@style()` that asks `canvas` for axes, names both axes with their units and returns
the figure; a notebook shows what a cell returns.  No pyplot: nothing is global, and no backend is chosen.
"""

from tinylib.plots.architecture import (
    compute_split,
    depth_width_plane,
    layer_profile,
    parameter_split,
    search_map,
    vocabulary_share,
)
from tinylib.plots.evaluation import document_scatter, race, where_bits_go
from tinylib.plots.model import attention, distance_only, gradients, losses_by_step, singular_values, softcap
from tinylib.plots.planning import iso_flop, memory_parts, time_against_mfu
from tinylib.plots.style import PALETTE, PARTS, Figure, canvas, footnote, human, style
from tinylib.plots.text import compression_curve, cost_of_text, price_by_kind, token_lengths
from tinylib.plots.training import rank_rows, training_curves
from tinylib.plots.tying import paired_differences, rate_curves, tied_start

__all__ = [
    "PALETTE", "PARTS", "Figure", "attention", "canvas", "compression_curve", "compute_split",
    "cost_of_text", "depth_width_plane", "distance_only", "document_scatter", "footnote", "gradients", "human",
    "iso_flop", "layer_profile", "losses_by_step", "memory_parts", "paired_differences", "parameter_split",
    "price_by_kind", "race", "rank_rows", "rate_curves", "search_map", "singular_values", "softcap", "style",
    "tied_start", "time_against_mfu", "token_lengths", "training_curves", "vocabulary_share", "where_bits_go",
]
