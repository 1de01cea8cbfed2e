"""Figures of sizes, shapes and plans: what is drawn is what the closed forms say, and every word can be read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from tinylib import plots, sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig
from tinylib.hardware import ACCELERATORS
from tinylib.plots.marks import label_points

NINE = {name: PRESETS[name] for name in list(PRESETS)[:9]}
D32, GOLDILOCKS = PRESETS["nanochat-d32"], PRESETS["goldilocks"]
FOUND = sizing.search()
CASES = {f"micro-batch {size}{', recomputing' * again}": sizing.memory(D32, size, dtype="bfloat16", recompute=again)
         for size in (8, 16) for again in (False, True)}
PUBLISHED_D32 = (0.509, 71_680 * 1.572 / 3600)

FIGURES: dict[str, Callable[[], plots.Figure]] = {
    "split": lambda: plots.parameter_split(NINE),
    "split in percent": lambda: plots.parameter_split(PRESETS, in_percent=True),
    "compute": lambda: plots.compute_split(NINE, in_percent=True),
    "layers of d32": lambda: plots.layer_profile(D32),
    "layers, tied": lambda: plots.layer_profile(replace(GOLDILOCKS, tied=True)),
    "plane": plots.depth_width_plane,
    "plane of another size": lambda: plots.depth_width_plane(2.4e6, (6_144,), {"micro": PRESETS["micro"]}),
    "share": lambda: plots.vocabulary_share(shapes=NINE),
    "search": lambda: plots.search_map(FOUND),
    "memory": lambda: plots.memory_parts(CASES, device="H100"),
    "hours": lambda: plots.time_against_mfu(D32, tuple(ACCELERATORS), marks={"published": PUBLISHED_D32}),
    "FLOPs": plots.iso_flop,
}


def words(figure: plots.Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_can_be_read(name: str):
    """Axes with names, a small picture, and no word over another one or beyond the edge."""
    figure = FIGURES[name]()
    for axes in figure.axes:
        shared = axes.get_shared_x_axes().get_siblings(axes)
        assert any(one.get_xlabel() for one in shared) or axes.get_label() == "<colorbar>"
        assert axes.get_ylabel() or [label.get_text() for label in axes.get_yticklabels()]
    picture = figure._repr_png_()
    assert picture.startswith(b"\x89PNG") and len(picture) < 100_000
    texts = [text for axes in figure.axes for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    whole = figure.bbox.padded(1)
    for text, box in zip(texts, boxes, strict=True):
        assert whole.contains(*box.min) and whole.contains(*box.max), text.get_text()
    for (one, box), (other, second) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not box.padded(-1).overlaps(second.padded(-1)), (one.get_text(), other.get_text())


def segments(axes: Axes) -> dict[str, list[float]]:
    """Widths of the bars by part."""
    return {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}


def test_split_draws_the_computed_parts():
    shapes = NINE | {"tied": GPTConfig(tied=True)}
    figure = plots.parameter_split(shapes)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(shapes)
    for part, drawn in segments(axes).items():
        assert drawn == pytest.approx([getattr(sizing.parameters(config), part) / 1e6 for config in shapes.values()])
    ends = [bar.get_x() + bar.get_width() for bar in axes.containers[-1]]
    assert ends == pytest.approx([sizing.parameters(config).total / 1e6 for config in shapes.values()])
    assert {"86 %", "1.88B", "25.2M"} <= words(figure)
    assert {"50 %", "25.2M"} == words(plots.parameter_split({"tied": GPTConfig(tied=True)})) - {""}


def test_split_in_percent_draws_the_shares():
    drawn = segments(plots.parameter_split(NINE, in_percent=True).axes[0])
    for row, config in enumerate(NINE.values()):
        assert {part: sizes[row] for part, sizes in drawn.items()} == pytest.approx(sizing.parameters(config).split)


@pytest.mark.parametrize("context", [None, 256])
def test_compute_split_adds_up_to_the_flops_of_a_token(context: int | None):
    drawn = segments(plots.compute_split(NINE, context).axes[0])
    flops = [sizing.flops_per_token(config, context) for config in NINE.values()]
    assert np.sum(list(drawn.values()), axis=0) * 1e6 == pytest.approx(flops)
    assert drawn["lm_head"] == pytest.approx([6 * sizing.parameters(config).wte / 1e6 for config in NINE.values()])


def test_words_stand_only_where_they_fit():
    figure = plots.memory_parts(CASES, device="H100")
    figure.draw_without_rendering()
    found = 0
    for text in (text for text in figure.axes[0].texts if text.get_text() and text.get_ha() == "center"):
        box = text.get_window_extent()
        for bar in figure.axes[0].patches:
            if bar.get_window_extent().contains(*np.mean(box, axis=0)):
                assert box.width <= bar.get_window_extent().width, text.get_text()
                found += 1
    assert found >= 2


@pytest.mark.parametrize(("config", "context"), [
    (GOLDILOCKS, None), (D32, 512), (replace(GOLDILOCKS, tied=True), None), (GPTConfig(depth=1), None)])
def test_a_layer_profile_stacks_the_table_of_layers(config: GPTConfig, context: int | None):
    figure = plots.layer_profile(config, context)
    table = sizing.layers(config, context)
    for axes, column in zip(figure.axes, ("parameters", "flops"), strict=True):
        heights = {bars.get_label(): [bar.get_height() * 1e6 for bar in bars] for bars in axes.containers}
        tops = [max(bar.get_y() + bar.get_height() for bars in axes.containers for bar in bars
                    if abs(bar.get_x() + 0.4 - layer) < 0.1) * 1e6 for layer in range(config.depth)]
        by_block = [table.loc[[f"block {layer} attention", f"block {layer} mlp"], column].sum()
                    for layer in range(config.depth)]
        assert tops == pytest.approx(by_block)
        assert heights["MLP"] == pytest.approx(table.filter(like="mlp", axis=0)[column])
        assert [heights["wte"], heights["lm_head"]] == [[table.loc["wte", column]], [table.loc["lm_head", column]]]
    scores = heights["attention scores"]
    assert scores == pytest.approx([12 * config.dim * (context or config.seq_len)] * config.depth)
    assert figure.axes[0].get_title(loc="left") == f"Parameters: {plots.human(sizing.parameters(config).total)}"
    assert ("0: the same table" in words(figure)) == config.tied and "0: a look-up" in words(figure)


def test_every_point_of_a_line_of_the_plane_has_the_size_and_the_flops_it_promises():
    axes = plots.depth_width_plane(total=38e6, vocab_sizes=(24_576, 65_536), flops=(200e6,), context=1024).axes[0]
    curves = {line.get_label(): line.get_xydata() for line in axes.lines}
    width, depth = curves["balanced: V = 12·L·D"].T
    np.testing.assert_allclose(2 * (12 * depth * width) * width + 12 * depth * width**2, 38e6)
    for vocab_size in (24_576, 65_536):
        width, depth = curves[f"_V {vocab_size}"].T
        seen = ~np.isnan(depth)
        np.testing.assert_allclose((2 * vocab_size * width + 12 * depth * width**2)[seen], 38e6)
    width, depth = curves["equal FLOPs per token"][~np.isnan(curves["equal FLOPs per token"]).any(1)].T
    table = (38e6 - 12 * depth * width**2) / 2
    assert len(width) > 50 and (table > 0).all()
    np.testing.assert_allclose(6 * (12 * depth * width**2 + table) + 12 * depth * width * 1024, 200e6)


def test_the_plane_marks_its_shapes_and_the_other_exact_thirds():
    axes = plots.depth_width_plane().axes[0]
    points = {tuple(line.get_xydata()[0]): line.get_markerfacecolor() for line in axes.lines
              if line.get_marker() == "o"}
    assert {place for place, fill in points.items() if fill != "white"} == {(512, 4), (384, 7), (192, 29)}
    hollow = {place for place, fill in points.items() if fill == "white"}
    assert hollow == {(1024, 1), (256, 16), (128, 64)}
    assert all(sizing.parameters(sizing.balanced(int(depth), int(dim))).total == 37_748_736 for dim, depth in hollow)
    assert "16 × 256, V 49,152" in words(axes.figure)


def test_vocabulary_share_is_the_split_of_real_shapes():
    figure = plots.vocabulary_share(vocab_sizes=(24_576,),
                                    shapes={name: PRESETS[name] for name in ("goldilocks", "extremist")})
    width, share = figure.axes[0].lines[0].get_xydata().T
    for dim in (64, 512, 4096):
        split = sizing.parameters(GPTConfig(4, dim, 24_576)).split
        assert np.interp(np.log(dim), np.log(width), share) == pytest.approx(split["wte"] + split["lm_head"], abs=0.05)
    same, other = figure.axes[0].lines[-2:]
    assert same.get_xydata()[0] == pytest.approx([512, 200 / 3]) and same.get_markerfacecolor() != "white"
    assert other.get_markerfacecolor() == "white" and "extremist: 29 layers" in words(figure)


def test_memory_bars_end_at_the_peak():
    cases = {"chunked": sizing.memory(GOLDILOCKS, 8), "update": sizing.memory(GOLDILOCKS, 1, context=16, rows=16)}
    cases["naive"] = replace(cases["chunked"], loss=sizing.loss_bytes(GOLDILOCKS, 8))
    cases["again"] = sizing.memory(GOLDILOCKS, 32, recompute=True)
    update, naive, again = cases["update"], cases["naive"], cases["again"]
    assert update.update > update.activations + update.loss and again.recomputed > again.loss
    drawn = segments(plots.memory_parts(cases).axes[0])
    assert np.sum(list(drawn.values()), axis=0) * 1e9 == pytest.approx([case.total for case in cases.values()])
    assert drawn["update"] == pytest.approx([0, update.update / 1e9, 0, 0])
    assert drawn["loss"] == pytest.approx([cases["chunked"].loss / 1e9, 0, naive.loss / 1e9, 0])
    assert drawn["recomputed"] == pytest.approx([0, 0, 0, again.recomputed / 1e9])
    assert naive.loss == (8 * 2048 * 4 + 512) * 4 * 24_576


def test_memory_says_what_does_not_fit():
    figure = plots.memory_parts(CASES, device="H100")
    assert list(figure.axes[0].lines[0].get_xdata()) == [80, 80] and "H100: 80 GB" in words(figure)
    too_much = [text for text in words(figure) if text.endswith("too much")]
    assert too_much == [f"{CASES['micro-batch 16'].total / 1e9:.0f} GB, too much"]
    with pytest.raises(ConfigError, match="device='H1' is not a choice: use B200"):
        plots.memory_parts(CASES, device="H1")


def test_hours_are_flops_over_what_the_devices_do():
    figure = plots.time_against_mfu(D32, devices=("H100", "A100", "L4"), marks={"published": PUBLISHED_D32})
    axes = figure.axes[0]
    curves = [line.get_xydata() for line in axes.lines if line.get_marker() == "None"]
    for curve, device in zip(curves, ("H100", "A100"), strict=True):
        mfu, hours = curve.T
        steps = math.ceil(20 * sizing.parameters(D32).total / 524_288)
        flops = steps * 524_288 * sizing.flops_per_token(D32)
        np.testing.assert_allclose(hours, flops / (mfu / 100 * 8 * ACCELERATORS[device].peak_flops) / 3600)
    marked = axes.lines[-1].get_xydata()[0]
    assert np.interp(marked[0], *curves[0].T) == pytest.approx(31.3, rel=0.01) == marked[1]
    planned = sizing.plan(D32, nproc_per_node=8)
    assert f"H100: {planned.train_s / 3600:.1f} h, ${planned.cost_usd:,.0f}" in words(figure)
    assert "too small for it: L4" in words(figure)


def test_a_line_of_hours_ends_where_communication_leaves_no_more():
    settings = {"nproc_per_node": 1, "nnodes": 32}    # a single link a machine
    axes = plots.time_against_mfu(GOLDILOCKS, devices=("H100",), mfu=0.2, **settings).axes[0]
    most = sizing.plan(GOLDILOCKS, mfu=1.0, **settings).mfu
    assert axes.lines[0].get_xdata().max() == pytest.approx(100 * most) and most < 0.5
    assert axes.lines[1].get_xdata()[0] == pytest.approx(20)
    nothing = plots.time_against_mfu(D32, devices=("L4",))
    assert not nothing.axes[0].lines and words(nothing) == {"too small for it: L4"}


def test_the_plane_of_flops_is_honest():
    shapes = {name: PRESETS[name] for name in ("nano", "extremist", "nanochat-d20")}
    figure = plots.iso_flop(shapes, context=1024)
    axes = figure.axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["a shape"], [(sizing.parameters(config).total, sizing.token_budget(config))
                                                     for config in shapes.values()])
    size, tokens = lines["its own FLOPs"].T
    own = [sizing.token_budget(config) * float(sizing.flops_per_token(config, 1024)) for config in shapes.values()]
    np.testing.assert_allclose(6 * size * tokens, own)
    assert lines["20 tokens a parameter"][:, 1] / lines["20 tokens a parameter"][:, 0] == pytest.approx(20)
    straight = {float(f"{6 * size * tokens:.4g}") for line in axes.lines[1:]
                for size, tokens in line.get_xydata() if line.get_linestyle() != "None"}
    assert {tier.flops for tier in sizing.TIERS} <= straight
    assert straight - {tier.flops for tier in sizing.TIERS} == {10.0**power for power in range(13, 21)}
    factor = own[1] / np.prod(lines["a shape"][1]) / 6
    assert f"extremist, × {factor:.2f}" in words(figure) and "4e19: talks like a\nkindergartener" in words(figure)


def test_the_map_of_a_search_draws_every_shape_once():
    axes = plots.search_map(FOUND).axes[0]
    others, front = (np.asarray(cloud.get_offsets()) for cloud in axes.collections)
    drawn = FOUND.assign(flops_per_token=FOUND["flops_per_token"] / 1e6)[["flops_per_token", "imbalance"]]
    np.testing.assert_allclose(front, drawn[FOUND["pareto"]])
    np.testing.assert_allclose(others, drawn[~FOUND["pareto"]])
    np.testing.assert_allclose(axes.collections[1].get_array(), np.log2(FOUND.loc[FOUND["pareto"], "depth"]))


def test_nothing_lies_below_the_edge_of_the_search():
    axes = plots.search_map(FOUND).axes[0]
    cost, imbalance = axes.lines[0].get_xydata().T
    assert axes.lines[0].get_drawstyle() == "steps-post"
    assert (np.diff(cost) > 0).all() and (np.diff(imbalance) < 0).all()
    for _, row in FOUND.iterrows():
        best = imbalance[cost <= row["flops_per_token"] / 1e6].min(initial=math.inf)
        assert best <= row["imbalance"]


def test_the_map_names_presets_and_what_they_missed():
    labels = words(plots.search_map(FOUND))
    named = {text.split("\n")[0] for text in labels if "\n" in text}
    assert named == {"goldilocks", "conventional", "extremist"}
    for _, row in sizing.missed(FOUND).iterrows():
        assert f"{row['depth']} × {row['dim']}, V {row['vocab_size']:,}" in labels
    one = plots.search_map(FOUND.head(1))
    assert one.axes[0].get_title(loc="left") == "What 1 shape trades"


def test_labels_keep_clear_of_each_other_and_of_points():
    figure = plots.iso_flop({f"shape {count}": GPTConfig(4 + count % 2, 512, 24_576 + count) for count in range(8)})
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().startswith("shape")]
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    [points] = [line.get_xydata() for line in axes.lines if line.get_label() == "a shape"]
    assert not any(box.contains(*place) for box in boxes for place in axes.transData.transform(points))


def test_labels_of_points_in_corners_stay_inside():
    corners = [(x, y) for x in (0, 1) for y in (0, 1)]
    with plots.style():
        figure, axes = plots.canvas()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        label_points(axes, [(f"a corner at {x}, {y}", x, y) for x, y in corners])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 4
    assert all(axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) for box in boxes)


def test_a_search_may_be_filtered_before_it_is_drawn():
    shallow = FOUND[FOUND["depth"] <= 16]
    assert isinstance(shallow, pd.DataFrame) and shallow.index[-1] != len(shallow) - 1
    clouds = plots.search_map(shallow).axes[0].collections
    assert sum(len(cloud.get_offsets()) for cloud in clouds) == len(shallow)
