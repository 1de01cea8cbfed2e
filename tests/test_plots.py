"""Figures of configurations, runs and tables: what they draw equals what was computed, and every text can be read."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from tinylib import plots, sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig
from tinylib.course import figures

NINE = {name: PRESETS[name] for name in list(PRESETS)[:9]}
D32, GOLDILOCKS = PRESETS["nanochat-d32"], PRESETS["goldilocks"]
CASES = {f"micro-batch {size}{', recomputing' * again}": sizing.memory(D32, size, dtype="bfloat16", recompute=again)
         for size in (8, 16) for again in (False, True)}

FIGURES: dict[str, Callable[[], plots.Figure]] = {
    "split": lambda: plots.parameter_split(NINE),
    "split of all": lambda: plots.parameter_split(PRESETS),
    "shares": lambda: plots.parameter_split(NINE, relative=True),
    "layers of d32": lambda: plots.layer_profile(D32),
    "layers, tied": lambda: plots.layer_profile(replace(GOLDILOCKS, tied=True)),
    "plane": plots.depth_width_plane,
    "plane of another size": lambda: plots.depth_width_plane(2.4e6, (6_144,), {"micro": PRESETS["micro"]}),
    "memory": lambda: plots.memory_parts(CASES, device="H100"),
    "share": lambda: figures.vocabulary_share("goldilocks", GOLDILOCKS),
    "FLOPs": figures.iso_flop,
}


def words(figure: plots.Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts}


def legend(figure: plots.Figure) -> set[str]:
    found = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return {text.get_text() for one in found if one for text in one.get_texts()}


def test_importing_and_drawing_leave_matplotlib_as_it_was():
    # `dict.items`, for reading the parameter "backend" itself would choose one.
    code = ("import matplotlib\nbefore = list(dict.items(matplotlib.rcParams))\nimport sys\n"
            "sys.modules['torch'] = None\n"
            "from tinylib import plots\nfrom tinylib.config import PRESETS\n"
            "plots.parameter_split(PRESETS)._repr_png_()\nassert list(dict.items(matplotlib.rcParams)) == before\n"
            "assert 'matplotlib.pyplot' not in sys.modules\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_style_ends_with_its_block():
    before = list(dict.items(matplotlib.rcParams))
    with plots.style():
        assert matplotlib.rcParams["axes.grid"] and not matplotlib.rcParams["axes.spines.top"]
    assert list(dict.items(matplotlib.rcParams)) == before


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[start:start + 2], 16) / 255 for start in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_the_parts_differ_in_lightness_too():
    wte, blocks, lm_head = (luminance(colour) for colour in plots.PARTS.values())
    for first, second in itertools.combinations((wte, blocks, lm_head), 2):
        assert abs(first - second) > 0.05


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (7, "7"), (0.25, "0.25"), (999, "999"), (999.6, "1.00K"), (1000, "1.00K"), (37_748_736, "37.7M"),
    (999_999, "1.00M"), (-25_165_824, "-25.2M"), (1.52e17, "152P"), (4.54e20, "454E"), (1e22, "1.00e+04E")])
def test_human(value: float, text: str):
    assert plots.human(value) == text


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
    assert {"86%", "1.88B", "25.2M"} <= words(figure)
    assert {"50%", "25.2M"} == words(plots.parameter_split({"tied": GPTConfig(tied=True)})) - {""}


def test_a_relative_split_has_bars_of_one_length():
    axes = plots.parameter_split(NINE, relative=True).axes[0]
    for part, drawn in segments(axes).items():
        assert drawn == pytest.approx([sizing.parameters(config).split[part] for config in NINE.values()])
    assert [bar.get_x() + bar.get_width() for bar in axes.containers[-1]] == pytest.approx([100] * len(NINE))
    assert "1.88B" in words(axes.figure)


def test_a_bar_has_a_text_only_where_it_fits():
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


@pytest.mark.parametrize("config", [GOLDILOCKS, replace(D32, seq_len=512), replace(GOLDILOCKS, tied=True),
                                    GPTConfig(depth=1)])
def test_a_layer_profile_stacks_the_table_of_layers(config: GPTConfig):
    figure, table = plots.layer_profile(config), sizing.layers(config)
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
    assert scores == pytest.approx([12 * config.dim * config.seq_len] * config.depth)
    assert figure.axes[0].get_title(loc="left") == f"Parameters: {plots.human(sizing.parameters(config).total)}"
    assert ("0: the same table" in words(figure)) == config.tied and "0: a look-up" in words(figure)


def test_every_point_of_a_line_of_the_plane_has_its_size_and_its_flops():
    axes = plots.depth_width_plane(total=38e6, vocab_sizes=(24_576, 65_536)).axes[0]
    curves = {line.get_label(): line.get_xydata() for line in axes.lines}
    width, depth = curves["balanced: V = 12·L·D"].T
    np.testing.assert_allclose(2 * (12 * depth * width) * width + 12 * depth * width**2, 38e6)
    for vocab_size in (24_576, 65_536):
        width, depth = curves[f"V = {vocab_size:,}"].T
        seen = ~np.isnan(depth)
        np.testing.assert_allclose((2 * vocab_size * width + 12 * depth * width**2)[seen], 38e6)
    dotted = [line.get_xydata() for line in axes.lines if line.get_linestyle() == ":"]
    costs = [200e6, 250e6, 290e6, 350e6]
    assert "equal FLOPs per token: 200M, 250M, 290M, 350M" in curves
    for line, cost in zip(dotted, costs, strict=True):
        width, depth = line[~np.isnan(line).any(1)].T
        table = (38e6 - 12 * depth * width**2) / 2
        assert len(width) > 50 and (table > 0).all()
        np.testing.assert_allclose(6 * (12 * depth * width**2 + table) + 12 * depth * width * 2048, cost)


def test_the_plane_marks_its_shapes_and_the_other_exact_thirds():
    axes = plots.depth_width_plane().axes[0]
    points = {tuple(line.get_xydata()[0]): line.get_markerfacecolor() for line in axes.lines
              if line.get_marker() == "o"}
    assert {place for place, fill in points.items() if fill != "white"} == {(512, 4), (384, 7), (192, 29)}
    hollow = {place for place, fill in points.items() if fill == "white"}
    assert hollow == {(1024, 1), (256, 16), (128, 64)}
    assert all(sizing.parameters(sizing.balanced(int(depth), int(dim))).total == 37_748_736 for dim, depth in hollow)
    assert "16 × 256, V 49,152" in words(axes.figure)


def test_memory_bars_end_at_the_peak():
    cases = {"chunked": sizing.memory(GOLDILOCKS, 8),
             "update": sizing.memory(replace(GOLDILOCKS, seq_len=16), 1, rows=16)}
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


def test_memory_marks_what_does_not_fit():
    figure = plots.memory_parts(CASES, device="H100")
    assert list(figure.axes[0].lines[0].get_xdata()) == [80, 80] and "H100: 80 GB" in words(figure)
    too_much = [text for text in words(figure) if text.endswith("too much")]
    figure.draw_without_rendering()
    line = figure.axes[0].transData.transform((80, 0))[0]
    ends = [text for text in figure.axes[0].texts if "GB" in text.get_text() and ":" not in text.get_text()]
    boxes = [text.get_window_extent() for text in ends]
    assert len(boxes) == len(CASES) and not any(box.x0 <= line <= box.x1 for box in boxes)
    assert too_much == [f"{CASES['micro-batch 16'].total / 1e9:.0f} GB, too much"]
    with pytest.raises(ConfigError, match="device='H1' is not a choice: use B200"):
        plots.memory_parts(CASES, device="H1")


def test_training_curves_have_marks_whose_texts_do_not_cover_them():
    steps = pd.DataFrame({"loss": np.linspace(8, 6, 30)}, index=range(1, 31))
    evaluations = pd.DataFrame({"val_bpb": [2.4, 2.2]}, index=[15, 30])
    figure = plots.training_curves({"one": (steps, evaluations)}, marks={0: "2 processes", 12: "1 process"})
    left, right = figure.axes
    each, mean, *marks = left.lines
    assert list(each.get_ydata()) == list(steps["loss"]) and list(right.lines[0].get_xdata()) == [15, 30]
    assert [mark.get_xdata()[0] for mark in marks] == [0, 12] and words(figure) >= {"2 processes", "1 process"}
    low, high = left.get_ylim()
    assert all((min(line.get_ydata()) - low) / (high - low) > 0.1 for line in (each, mean)), "the words are below"


def test_paired_differences_draw_seeds_mean_and_interval():
    differences = pd.DataFrame({"tied − untied": [0.1, 0.2, 0.3]})
    bar, seeds, mean = plots.paired_differences(differences, {"tied − untied": (-0.05, 0.45)}).axes[0].lines[:3]
    assert list(bar.get_xdata()) == [-0.05, 0.45] and list(seeds.get_xdata()) == [0.1, 0.2, 0.3]
    assert mean.get_xdata()[0] == pytest.approx(0.2)


def test_arm_differences_name_their_marks_and_blocks():
    block = (pd.DataFrame({"tied": [0.1, 0.2]}), pd.DataFrame({"low": [0.0], "high": [0.3]}, index=["tied"]))
    figure = plots.arm_differences({"depth": {"short": block, "long": block}, "tying, English": {"short": block}})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Depth", "Tying, English"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["short", "long", "a seed", "mean"]
    bars = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_label() in ("short", "long")]
    assert bars == pytest.approx([-0.18, 0.18]), "the bars of an arm lie side by side about its row"
