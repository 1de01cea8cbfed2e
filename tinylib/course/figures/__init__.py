"""Figures that one notebook draws: a module a notebook.

Figures of a reader's own configurations, runs and tables are in `tinylib.plots`.
"""

from tinylib.course.figures.architecture import iso_flop, roofline, vocabulary_share
from tinylib.course.figures.distributed import rank_rows, run_life, schedules
from tinylib.course.figures.evaluation import (
    accuracy_and_chance,
    bpb_vs_baselines,
    decoding_time,
    document_scatter,
    read_and_unread,
    text_by_surprise,
    where_bits_go,
)
from tinylib.course.figures.model import (
    attention,
    block_diagram,
    distance_only,
    gradients,
    losses_by_step,
    singular_values,
    softcap,
)
from tinylib.course.figures.tokenizer import compression_curve, cost_of_text, price_by_kind, token_lengths
from tinylib.course.figures.tying import (
    arms_over,
    difference_bars,
    law_and_records,
    loss_differences,
    rate_curves,
    table_geometry,
    tied_start,
)

__all__ = [
    "accuracy_and_chance", "arms_over", "attention", "block_diagram", "bpb_vs_baselines", "compression_curve",
    "cost_of_text", "decoding_time", "difference_bars", "distance_only", "document_scatter", "gradients", "iso_flop",
    "law_and_records", "loss_differences", "losses_by_step", "price_by_kind", "rank_rows", "rate_curves",
    "read_and_unread", "roofline", "run_life", "schedules", "singular_values", "softcap", "table_geometry",
    "text_by_surprise", "tied_start", "token_lengths", "vocabulary_share", "where_bits_go",
]
