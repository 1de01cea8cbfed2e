"""Figures of single notebooks: what they draw equals what they are given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tinylib import plots, sizing
from tinylib.config import PRESETS, GPTConfig, TrainConfig
from tinylib.course import figures
from tinylib.course.figures.architecture import ON_THE_PLANE
from tinylib.tokenizer import Decision

D32, GOLDILOCKS = PRESETS["nanochat-d32"], PRESETS["goldilocks"]


def words(figure: plots.Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def legend(figure: plots.Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_vocabulary_share_is_the_split_of_real_shapes():
    figure = figures.vocabulary_share("goldilocks", GOLDILOCKS)
    width, share = figure.axes[0].lines[1].get_xydata().T
    for dim in (64, 512, 4096):
        split = sizing.parameters(GPTConfig(4, dim, 24_576)).split
        assert np.interp(np.log(dim), np.log(width), share) == pytest.approx(split["wte"] + split["lm_head"], abs=0.05)
    assert figure.axes[0].lines[-1].get_xydata()[0] == pytest.approx([512, 200 / 3])
    assert legend(figure)[1:] == ["V = 24,576", "V = 65,536", "V = 131,072", "1 : 1 : 1", "goldilocks"]


def test_the_roofline_is_the_lower_of_two_limits():
    table = pd.DataFrame({"intensity": [1.0, 100.0], "flops_per_s": [7e9, 80e9]}, index=["thin", "fat"])
    axes, = figures.roofline(table, flops_per_s=100e9, bytes_per_s=10e9).axes
    roof, measured = axes.lines
    np.testing.assert_allclose(roof.get_ydata(), np.minimum(100, 10 * roof.get_xdata()))
    assert measured.get_xydata().tolist() == [[1, 7], [100, 80]] and {"thin", "fat"} <= words(axes.figure)


def test_the_block_diagram_has_every_tensor():
    parts = set(", ".join(words(figures.block_diagram())).split(", "))
    assert {spec.name.split(".")[-2] for spec in GOLDILOCKS.tensors()} <= parts


def test_the_plane_of_flops_is_honest():
    shapes = {name: PRESETS[name] for name in ON_THE_PLANE}
    figure = figures.iso_flop()
    axes = figure.axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["a shape"], [(sizing.parameters(config).total, sizing.token_budget(config))
                                                     for config in shapes.values()])
    size, tokens = lines["exact FLOPs"].T
    own = [sizing.token_budget(config) * float(sizing.flops_per_token(config)) for config in shapes.values()]
    np.testing.assert_allclose(6 * size * tokens, own)
    assert lines["20 tokens a parameter"][:, 1] / lines["20 tokens a parameter"][:, 0] == pytest.approx(20)
    straight = {float(f"{6 * size * tokens:.4g}") for line in axes.lines[1:]
                for size, tokens in line.get_xydata() if line.get_linestyle() != "None"}
    assert {tier.flops for tier in sizing.TIERS} <= straight
    assert straight - {tier.flops for tier in sizing.TIERS} == {10.0**power for power in range(14, 22)}
    place = ON_THE_PLANE.index("extremist")
    factor = own[place] / np.prod(lines["a shape"][place]) / 6
    assert any(f"extremist × {factor:.2f}" in text for text in words(figure))
    assert "4e19: talks like a\nkindergartener" in words(figure)


def test_figures_of_the_model_draw_what_they_are_given():
    scores_TT = np.subtract.outer(np.arange(4), np.arange(4)) ** 2.0
    left, right, _ = figures.distance_only(scores_TT).axes
    np.testing.assert_array_equal(left.images[0].get_array(), scores_TT)
    distance, score = right.lines[0].get_xydata().T
    np.testing.assert_array_equal(score, distance**2)

    before, slope = figures.softcap().axes
    logit, capped = before.lines[2].get_xydata().T
    assert abs(capped).max() < 15
    np.testing.assert_allclose(np.gradient(capped, logit)[1:-1], slope.lines[1].get_ydata()[1:-1], atol=1e-3)

    axes = figures.losses_by_step({"ours": [3.0, 2.0]}, {"ln V": 3.5}, "title").axes[0]
    assert [line.get_ydata()[-1] for line in axes.lines] == [2.0, 3.5] and "ln V" in legend(axes.figure)

    norms = pd.DataFrame({"up": [4.0, 2.0], "down": [1.0, 3.0]})
    assert [list(line.get_ydata()) for line in figures.gradients(norms).axes[0].lines] == [[4, 2], [1, 3]]
    spectrum = figures.singular_values({"gradient": np.array([8.0, 4.0, 1.0])}).axes[0].lines[0]
    assert list(spectrum.get_ydata()) == [1, 0.5, 0.125]


def test_attention_has_a_map_for_each_head():
    weights_LNTT = np.random.default_rng(0).random((2, 3, 4, 4))
    figure = figures.attention(weights_LNTT, "abcd")
    maps = [axes.images[0].get_array() for axes in figure.axes[:6]]
    np.testing.assert_array_equal(np.reshape(maps, weights_LNTT.shape), weights_LNTT)
    assert [axes.get_title(loc="left") for axes in figure.axes[2:4]] == ["layer 0, head 2", "layer 1, head 0"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_figures_of_baselines_and_documents_draw_what_they_are_given():
    table = pd.DataFrame({"bits_per_byte": [1.5, 2.5], "difference": [0.1, -0.9], "low": [-0.1, -1.2],
                          "high": [0.2, -0.7]}, index=["5-gram", "xz"])
    left, right = figures.bpb_vs_baselines(1.6, table, "how it was made").axes
    assert [bar.get_width() for bar in left.patches] == [2.5, 1.5] and list(left.lines[0].get_xdata()) == [1.6, 1.6]
    assert [label.get_text() for label in left.get_yticklabels()] == ["xz", "5-gram"]
    assert list(right.lines[0].get_xdata()) == [-0.9, 0.1]
    bars = [segment[:, 0].tolist() for segment in right.collections[0].get_segments()]
    assert np.allclose(bars, [[-1.2, -0.7], [-0.1, 0.2]])

    table = pd.DataFrame({"bytes": [100, 400, 900], "model": [1.0, 2.0, 3.0], "other": [2.0, 1.5, 4.0]})
    wins, losses = figures.document_scatter(table, "xz").axes[0].collections
    assert wins.get_offsets().tolist() == [[2, 1], [4, 3]] and losses.get_offsets().tolist() == [[1.5, 2]]
    assert list(wins.get_sizes()) == [20, 60]


def test_text_is_wrapped_and_colored_by_its_bits():
    figure = figures.text_by_surprise(["ab", "cd\n", "$e", "\nf"], [0, 12, 20, 6], columns=5)
    axes = figure.axes[0]
    placed = [(text.get_text(), text.get_position()) for text in axes.texts]
    assert placed == [("ab", (0, 0)), ("cd↵", (2, 0)), (r"\$e", (0, 1)), ("↵", (2, 1)), ("f", (0, 2))]
    red = [bar.get_facecolor()[2] for bar in axes.patches]    # less blue is a darker orange
    assert red[0] > red[3] == red[4] > red[1] == red[2]
    assert [text.get_color() for text in axes.texts] == ["black", "white", "white", "black", "black"]
    narrow = figures.text_by_surprise(["abc", "def"], [1, 1], columns=5).axes[0]
    assert [text.get_position() for text in narrow.texts] == [(0, 0), (0, 1)]
    figure = figures.text_by_surprise(["x" * 88], [1])
    figure.draw_without_rendering()
    box = figure.axes[0].patches[0].get_window_extent()
    assert figure.axes[0].texts[0].get_window_extent().width == pytest.approx(box.width, rel=0.01)


def test_the_figures_of_cuts_and_costs_draw_what_they_are_given():
    costs = pd.DataFrame({"model": [1.0, 2.0], "5-gram": [3.0, 4.0]}, index=["ast", "json"])
    left, middle, right = figures.where_bits_go(pd.Series({1: 5.0, 2: 4.0}), costs, costs).axes
    assert list(left.lines[0].get_ydata()) == [5, 4]
    for axes in (middle, right):
        assert [bar.get_width() for bar in axes.patches] == [1, 2, 3, 4]
    assert [label.get_text() for label in middle.get_yticklabels()] == ["ast", "json"]

    gap = pd.DataFrame({"bits_per_byte": [1.4, 1.5], "low": [1.3, 1.4], "high": [1.6, 1.7]}, index=[0, 40])
    upper, lower = figures.read_and_unread(gap, pd.Series({0: 1.0, 40: 0.5})).axes
    assert [list(line.get_xdata()) for line in upper.lines if line.get_marker() == "o"] == [[0], [40]]
    assert list(lower.lines[0].get_ydata()) == [1.0, 0.5]

    times = pd.DataFrame({"whole": [1.0, 3.0], "cached": [1.0, 1.1]}, index=[8, 16])
    axes, = figures.decoding_time(times).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 3.0], [1.0, 1.1]]


def test_accuracy_is_filled_where_its_interval_excludes_chance():
    table = pd.DataFrame({"accuracy": [0.9, 0.5, 0.1], "low": [0.8, 0.4, 0.0], "high": [1.0, 0.6, 0.2],
                          "chance": [0.5, 0.5, 0.5]}, index=["sure", "even", "reverse"])
    axes, = figures.accuracy_and_chance({"BLiMP": table}, "how").axes
    filled, empty, chance = axes.lines
    assert list(filled.get_xdata()) == [0.9, 0.1] and list(empty.get_xdata()) == [0.5]
    assert list(chance.get_xdata()) == [0.5] * 3
    assert [label.get_text() for label in axes.get_yticklabels()] == ["sure", "even", "reverse"]


def test_of_many_tasks_the_ends_and_agreement_are_shown():
    names = [f"task_{place}" for place in range(40)]
    names[20] = "regular_plural_subject_verb_agreement_1"
    table = pd.DataFrame({"accuracy": np.linspace(1, 0, 40), "low": 0.0, "high": 1.0, "chance": 0.5}, index=names)
    axes, = figures.accuracy_and_chance({"BLiMP": table}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names[:12] + names[20:21] + names[-12:]
    assert axes.get_title(loc="left") == "BLiMP, 25 of 40"


def test_the_figures_of_tying_draw_what_they_are_given():
    start = pd.DataFrame({"loss": [10.1, 22.3], "repeats": [0.95, 0.0004]}, index=[0.04, 0.8])
    left, right = figures.tied_start(start, uniform=10.11, marks={"1/√D": 0.04}).axes
    assert list(left.lines[0].get_ydata()) == [10.1, 22.3] and list(left.lines[1].get_ydata()) == [10.11, 10.11]
    assert list(right.lines[0].get_ydata()) == [95, 0.04] and right.lines[1].get_xdata() == [0.04, 0.04]

    rates = pd.DataFrame({"thirds": [2.2, 2.0, 2.1], "tied": [2.0, 2.1, 2.3]}, index=[0.5, 1.0, 2.0])
    axes, = figures.rate_curves(rates, noise=0.01).axes
    assert axes.lines[0].get_ydata() == pytest.approx([0.2, 0, 0.1])
    assert axes.lines[1].get_ydata() == pytest.approx([-0.1, 0, 0.2])
    assert axes.patches[0].get_height() == pytest.approx(2 * 2 * 2**0.5 * 0.01)

    norms = pd.DataFrame({"wte": [1.0, 4.0], "tied": [3.0, 2.0]}, index=[10, 100])
    left, right = figures.table_geometry(norms, {"two": np.array([0.0, 0.1]), "one": np.array([0.3])}).axes
    assert [list(line.get_ydata()) for line in left.lines] == [[0.25, 1], [1.5, 1]]
    assert len(right.patches) == 2


def test_the_figures_of_the_records_draw_every_run():
    rows = pd.DataFrame({"difference": [-0.1, 0.2], "low": [-0.2, 0.1], "high": [0.0, 0.3]}, index=["a", "b"])
    axes, = figures.difference_bars(rows, "less").axes
    assert axes.lines[0].get_xdata().tolist() == [-0.1, 0.2]
    bars = [segment.tolist() for segment in axes.collections[0].get_segments()]
    assert bars == [[[-0.2, 0], [0, 0]], [[0.1, 1], [0.3, 1]]]

    runs = pd.DataFrame({"depth": [1, 1, 4], "bits_per_byte": [2.0, 2.2, 1.9]})
    axes, = figures.arms_over({"all": runs}, "depth", "layers", reference=4).axes
    assert axes.lines[0].get_ydata() == pytest.approx([2.1, 1.9]) and list(axes.lines[1].get_ydata()) == [2.0, 2.2, 1.9]

    crowd = pd.DataFrame({"depth": [768, 8_448, 8_800], "bits_per_byte": [2.0, 2.2, 1.9]})
    few, many = figures.arms_over({"few": runs, "many": crowd}, "depth", "layers", reference=4).axes
    assert [axes.get_xticklabels()[0].get_rotation() for axes in (few, many)] == [0, 45]

    unseen = pd.DataFrame({"size": ["nano", "micro"], "predicted": [2.0, 1.8], "half": [0.1, 0.2],
                           "bits_per_byte": [2.1, 1.7]})
    axes, = figures.law_and_records({"all": unseen}).axes
    assert [bars.lines[0].get_xydata().tolist() for bars in axes.containers] == [[[2.0, 2.1]], [[1.8, 1.7]]]

    losses = pd.DataFrame({"arm": ["untied", "tied"], "seed": [0, 0],
                           "curve": [[[1, 4.0], [100, 4.0]], [[1, 6.0], [200, 4.0]]]})
    axes, = figures.loss_differences(losses, ["tied"], "untied").axes
    share, difference = axes.lines[0].get_data()
    assert difference == pytest.approx(2 - 2 * (share * 200 - 1) / 199), "compared at the same share of each run"


def test_the_figures_of_the_tokenizer_draw_what_was_measured():
    table = pd.DataFrame({"vocab_size": [384, 768, 1536], "characters_per_token": [1.7, 2.3, 2.9],
                          "table_parameters": [24_576, 49_152, 98_304]})
    left, right = figures.compression_curve(table, blocks=196_608, chosen=768).axes
    assert left.lines[0].get_ydata().tolist() == [1.7, 2.3, 2.9]
    assert right.lines[0].get_ydata().tolist() == [0.024576, 0.049152, 0.098304]
    assert set(right.lines[1].get_ydata()) == {0.196608}
    costs = pd.DataFrame({"narrow": [2.0, 1.0, 4.0]}, index=[384, 768, 1536])
    axes, = figures.cost_of_text(costs, chosen=768).axes
    assert axes.lines[0].get_ydata().tolist() == [2, 1, 4] and axes.lines[1].get_xdata() == [768]
    axes, = figures.token_lengths([1, 1, 2, 40], [1, 1, 1, 2]).axes
    assert [bar.get_height() for bar in axes.patches] == [50, 25, *[0] * 13, 25, 75, 25, *[0] * 14]


def test_the_costs_of_a_text_are_drawn_with_the_intervals_of_the_decisions():
    costs = pd.DataFrame({"narrow": [2.0, 1.0, 4.0], "wide": [3.0, 2.0, 1.0]}, index=[384, 768, 1536])
    decisions = {"narrow": Decision(760, low=700, high=800, flat=(650, 900), at_edge=False),
                 "wide": Decision(1536, low=1400, high=1536, flat=(1300, 1536), at_edge=True)}
    axes, = figures.cost_of_text(costs, 768, decisions).axes
    drawn = [tuple(line.get_xdata()) for line in axes.lines]
    for found in decisions.values():
        assert (found.low, found.high) in drawn and found.flat in drawn and (found.vocab_size,) in drawn


def test_price_by_kind_has_a_bar_for_each_tokenizer():
    table = pd.DataFrame({"kind": ["words", "words", "scripts", "scripts"], "tokenizer": ["ours", "small"] * 2,
                          "bytes_per_token": [4.0, 2.0, 1.5, 1.0]})
    figure = figures.price_by_kind(table)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [4.0, 1.5, 2.0, 1.0]
    assert legend(figure) == ["ours", "small"]
    assert figures.price_by_kind(table[table.tokenizer == "ours"]).axes[0].get_legend() is None


def test_rank_rows_take_each_row_of_the_batch_once():
    axes, = figures.rank_rows(32, 8, (1, 2, 4)).axes
    for place in range(3):
        bars = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == place]
        assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(0, 8), (8, 8), (16, 8), (24, 8)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1 process", "2 processes", "4 processes"]
    assert {"rank 0\nmicro 4", "rank 1\nmicro 2", "rank 3\nmicro 1"} <= words(axes.figure)


def test_schedules_are_those_of_the_optimizer():
    config = TrainConfig(steps=10, warmup_fraction=0.2, warmdown_fraction=0.5)
    axes, = figures.schedules({"ours": config, "no warm-up": replace(config, warmup_fraction=0.0)}).axes
    for line, first in zip(axes.lines, (0.5, 1.0), strict=True):
        share, factor = line.get_xydata().T
        np.testing.assert_allclose(share, np.arange(10, 101, 10))
        np.testing.assert_allclose(factor, [first, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert legend(axes.figure) == ["ours", "no warm-up"]


def test_in_the_life_of_a_run_only_the_kernel_ends_in_between():
    figure = figures.run_life()
    assert {"kernel", "torchrun", "rank 0", "rank 1", "run directory", "all-reduce"} <= words(figure)
    kernel, agent, ranks, folder = ([path.get_extents() for path in bars.get_paths()]
                                    for bars in figure.axes[1].collections)
    assert len(kernel) == 2 and len(agent) == len(ranks) == len(folder) == 1
    assert agent[0].x0 < ranks[0].x0 and folder[0].x1 > agent[0].x1 > ranks[0].x1 > kernel[0].x1
