"""Figures: what they draw equals what was computed; importing or drawing changes nothing outside the figure."""

from __future__ import annotations

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest

from tinylib import plots


def words(figure: plots.Figure) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in axes.texts}


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


def test_figures_of_the_model_draw_what_they_are_given():
    scores_TT = np.subtract.outer(np.arange(4), np.arange(4)) ** 2.0
    left, right, _ = plots.distance_only(scores_TT).axes
    np.testing.assert_array_equal(left.images[0].get_array(), scores_TT)
    distance, score = right.lines[0].get_xydata().T
    np.testing.assert_array_equal(score, distance**2)

    before, slope = plots.softcap(caps=(15.0,)).axes
    logit, capped = before.lines[1].get_xydata().T
    assert abs(capped).max() < 15
    np.testing.assert_allclose(np.gradient(capped, logit)[1:-1], slope.lines[0].get_ydata()[1:-1], atol=1e-3)

    axes = plots.losses_by_step({"ours": [3.0, 2.0]}, {"ln V": 3.5}, "title").axes[0]
    assert [line.get_ydata()[-1] for line in axes.lines] == [2.0, 3.5] and "ln V" in words(axes.figure)

    norms = pd.DataFrame({"up": [4.0, 2.0], "down": [1.0, 3.0]})
    assert [list(line.get_ydata()) for line in plots.gradients(norms).axes[0].lines] == [[4, 2], [1, 3]]
    spectrum = plots.singular_values({"gradient": np.array([8.0, 4.0, 1.0])}).axes[0].lines[0]
    assert list(spectrum.get_ydata()) == [1, 0.5, 0.125]


def test_attention_has_a_map_for_each_head():
    weights_LNTT = np.random.default_rng(0).random((2, 3, 4, 4))
    figure = plots.attention(weights_LNTT, "abcd")
    maps = [axes.images[0].get_array() for axes in figure.axes[:6]]
    np.testing.assert_array_equal(np.reshape(maps, weights_LNTT.shape), weights_LNTT)
    assert [axes.get_title(loc="left") for axes in figure.axes[2:4]] == ["layer 0, head 2", "layer 1, head 0"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_figures_of_evaluation_draw_what_they_are_given():
    axes = plots.race(pd.Series({0: 3.5, 10: 2.0}), (2.1, 1.9, 2.4), {"xz": 2.7}, "how it was made").axes[0]
    assert list(axes.lines[0].get_ydata()) == [3.5, 2.0] and words(axes.figure) == {"2.70 xz"}
    [[bottom, top]] = [segment[:, 1] for segment in axes.collections[0].get_segments()]
    assert (bottom, top) == pytest.approx((1.9, 2.4))

    table = pd.DataFrame({"bytes": [100, 400, 900], "model": [1.0, 2.0, 3.0], "xz": [2.0, 1.5, 4.0]})
    wins, losses = plots.document_scatter(table).axes[0].collections
    assert wins.get_offsets().tolist() == [[2, 1], [4, 3]] and losses.get_offsets().tolist() == [[1.5, 2]]
    assert list(wins.get_sizes()) == [20, 60]

    kinds = pd.DataFrame({"model": [1.0, 2.0], "xz": [3.0, 4.0]}, index=["ast", "json"])
    left, right = plots.where_bits_go(pd.Series({1: 5.0, 2: 4.0}), kinds).axes
    assert list(left.lines[0].get_ydata()) == [5, 4]
    assert [bar.get_width() for bar in right.patches] == [1, 2, 3, 4]


def test_the_curves_of_a_run_say_what_began_where_without_lying_on_them():
    steps = pd.DataFrame({"loss": np.linspace(8, 6, 30)}, index=range(1, 31))
    evaluations = pd.DataFrame({"val_bpb": [2.4, 2.2]}, index=[15, 30])
    figure = plots.training_curves({"one": (steps, evaluations)}, marks={0: "2 processes", 12: "1 process"})
    left, right = figure.axes
    each, mean, *marks = left.lines
    assert list(each.get_ydata()) == list(steps["loss"]) and list(right.lines[0].get_xdata()) == [15, 30]
    assert [mark.get_xdata()[0] for mark in marks] == [0, 12] and words(figure) >= {"2 processes", "1 process"}
    low, high = left.get_ylim()
    assert all((min(line.get_ydata()) - low) / (high - low) > 0.1 for line in (each, mean)), "the words are below"


def test_the_figures_of_tying_draw_what_they_are_given():
    start = pd.DataFrame({"loss": [10.1, 22.3], "own_logit": [0.5, 15.0]}, index=[0.001, 0.8])
    left, right = plots.tied_start(start, uniform=10.11, chosen=0.001).axes
    assert list(left.lines[0].get_ydata()) == [10.1, 22.3] and list(left.lines[1].get_ydata()) == [10.11, 10.11]
    assert list(right.lines[0].get_ydata()) == [0.5, 15.0]

    rates = pd.DataFrame({"wte": [3.0, 2.0], "lm_head": [2.0, 3.0]}, index=[0.01, 0.1])
    rings = [line for line in plots.rate_curves(rates).axes[0].lines if line.get_markersize() == 12]
    assert [float(line.get_xdata()[0]) for line in rings] == [0.1, 0.01]

    differences = pd.DataFrame({"tied − untied": [0.1, 0.2, 0.3]})
    bar, seeds, mean = plots.paired_differences(differences, {"tied − untied": (-0.05, 0.45)}).axes[0].lines[:3]
    assert list(bar.get_xdata()) == [-0.05, 0.45] and list(seeds.get_xdata()) == [0.1, 0.2, 0.3]
    assert mean.get_xdata()[0] == pytest.approx(0.2)
