"""Figures from tables and records: one style, one palette that colour-blind readers can tell apart.

A figure is a function under `@style()` that asks `canvas` for axes, names both axes with their units and returns
the figure; a notebook shows what a cell returns.  No pyplot: nothing is global, and no backend is chosen.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure

from tinylib.config import PRESETS, GPTConfig
from tinylib.sizing import flops_per_token, parameters

if TYPE_CHECKING:
    import pandas as pd

PALETTE: dict[str, str] = {
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00",
    "purple": "#CC79A7", "sky": "#56B4E9", "yellow": "#F0E442", "black": "#000000", "grey": "#767676"}
"""Okabe and Ito's colours; plain curves take them in this order, grey is for what stays in the background.

Source: Okabe and Ito, Color Universal Design (2008).
"""

PARTS: dict[str, str] = {"wte": PALETTE["orange"], "blocks": PALETTE["blue"], "lm_head": PALETTE["green"]}
"""A part of the model has the same colour in every figure."""

_STYLE: dict[str, Any] = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold",
    "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#DDDDDD", "grid.linewidth": 0.6, "lines.linewidth": 1.8,
    "axes.prop_cycle": matplotlib.cycler(color=[colour for name, colour in PALETTE.items() if name != "grey"])}


class Figure(_Figure):
    """A matplotlib figure that a notebook can show without pyplot."""

    def _repr_png_(self) -> bytes:
        from PIL import Image  # matplotlib brings it along

        drawn, packed = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", dpi=110)
        # A notebook keeps its figures in the file, and a palette of 256 colours takes a third of the bytes.
        Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(packed, "png", optimize=True)
        return packed.getvalue()


@contextmanager
def style() -> Iterator[None]:
    """The style of every figure, for the time of a `with` block or, as `@style()`, of a function."""
    with matplotlib.rc_context(_STYLE):
        yield


def canvas(columns: int = 1, height_in: float = 3.4, width_in: float = 7.0, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure of half a page and its axes (an array of axes if `columns` > 1); `kwargs` go to `Figure.subplots`.

    >>> with style():
    ...     figure, axes = canvas()
    >>> figure.get_size_inches().tolist()
    [7.0, 3.4]
    """
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.subplots(1, columns, **kwargs)


def footnote(figure: Figure, text: str) -> None:
    """One small line under a figure: what machine, date and command its numbers come from."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color=PALETTE["grey"])


def human(value: float) -> str:
    """A count in three digits and a letter.

    >>> human(37_994_496), human(589_824), human(201_326_592), human(7), human(4.54e20)
    ('38.0M', '590K', '201M', '7', '454E')
    """
    value = float(f"{value:.3g}")
    power = min(6, math.floor(math.log10(abs(value)) / 3)) if abs(value) >= 1000 else 0
    return f"{value / 1000**power:#.3g}".rstrip(".") + "KMBTPE"[power - 1] if power else f"{value:.3g}"


# Architecture math

_CURVES = [PALETTE[name] for name in ("orange", "blue", "green", "purple", "sky", "yellow", "grey")]
"""Red is left for the points on the curves."""
_DARK = ("blocks", "lm_head")
"""Parts whose colour wants white letters."""


@style()
def parameter_split(configs: Mapping[str, GPTConfig]) -> Figure:
    """Stacked bars of parameters by part, in millions, with each part's share; one bar for each named shape.

    >>> parameter_split({"goldilocks": PRESETS["goldilocks"]}).axes[0].get_xlabel()
    'parameters, millions'
    """
    counts = [parameters(config) for config in configs.values()]
    return _stacked_bars(list(configs), {part: [getattr(count, part) for count in counts] for part in PARTS},
                         "parameters, millions")


@style()
def compute_split(configs: Mapping[str, GPTConfig], context: int | None = None) -> Figure:
    """Stacked bars of training FLOPs per token by part, in millions; attention is what grows with `context`.

    The matrices of blocks and head cost 6 FLOPs a parameter, looking up an embedding none.
    """
    total = [flops_per_token(config, context) for config in configs.values()]
    blocks = [6 * parameters(config).blocks for config in configs.values()]
    head = [6 * config.vocab_size * config.dim for config in configs.values()]
    attention = [whole - part - table for whole, part, table in zip(total, blocks, head, strict=True)]
    return _stacked_bars(list(configs), {"blocks": blocks, "lm_head": head, "attention scores": attention},
                         "training FLOPs per token, millions")


@style()
def depth_width_plane(total: float = 38e6, vocab_sizes: Sequence[int] = (16_384, 24_576, 32_768, 65_536),
                      shapes: Mapping[str, GPTConfig] | None = None, max_depth: int = 64) -> Figure:
    """The plane of width and depth: a line of `total` parameters (untied) for each vocabulary, and the balanced curve.

    On the balanced curve V = 12·L·D, so that every point splits `total` into exact thirds: 36·L·D² = `total`.
    """
    shapes = {name: PRESETS[name] for name in ("goldilocks", "conventional", "extremist")} if shapes is None else shapes
    figure, axes = canvas(height_in=4.2)
    dim = np.geomspace(96, 1600, 400)
    axes.plot(dim, total / (36 * dim**2), color=PALETTE["black"], linewidth=3, label="balanced: V = 12·L·D")
    for vocab_size, colour in zip(vocab_sizes, _CURVES, strict=False):
        depth = (total - 2 * vocab_size * dim) / (12 * dim**2)
        axes.plot(dim, np.where(depth > 0, depth, np.nan), color=colour, linewidth=1.4, label=f"V = {vocab_size:,}")
    for name, config in shapes.items():
        axes.plot(config.dim, config.depth, "o", color=PALETTE["red"], markersize=7, zorder=3)
        axes.annotate(f"{name}\n{config.depth} × {config.dim}, V {config.vocab_size:,}", (config.dim, config.depth),
                      xytext=(-7, -5), textcoords="offset points", fontsize=8, zorder=2, ha="right", va="top",
                      bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1})
    _powers_of_two(axes, widths=(128, 256, 512, 1024), depths=(1, 2, 4, 8, 16, 32, 64))
    axes.set(xlim=(90, 1500), ylim=(0.8, max_depth * 1.2))
    axes.set(xlabel="width D, numbers per token", ylabel="depth L, layers")
    axes.set_title(f"Ways to spend {human(total)} parameters")
    axes.legend(loc="upper right")
    return figure


@style()
def vocabulary_share(vocab_sizes: Sequence[int] = (8_192, 24_576, 65_536, 131_072), depth: int = 4,
                     shapes: Mapping[str, GPTConfig] | None = None) -> Figure:
    """Share of both tables in an untied model against its width, a line for each vocabulary, at one depth.

    The share is 2·V·D / (2·V·D + 12·L·D²) = V / (V + 6·L·D).
    """
    figure, axes = canvas()
    dim = np.geomspace(64, 8192, 300)
    for vocab_size, colour in zip(vocab_sizes, _CURVES, strict=False):
        axes.plot(dim, 100 * vocab_size / (vocab_size + 6 * depth * dim), color=colour, label=f"V = {vocab_size:,}")
    axes.axhline(200 / 3, color=PALETTE["grey"], linewidth=1, linestyle="--")
    axes.annotate("1 : 1 : 1", (70, 200 / 3), xytext=(0, 3), textcoords="offset points", fontsize=8)
    for name, config in (shapes or {}).items():
        axes.plot(config.dim, 100 * 2 * parameters(config).wte / parameters(config).total_untied, "o",
                  color=PALETTE["red"], label=name)
    _powers_of_two(axes, widths=(64, 128, 256, 512, 1024, 2048, 4096, 8192))
    axes.set(ylim=(0, 102), xlabel="width D, numbers per token", ylabel="both tables, % of parameters")
    axes.set_title(f"What the vocabulary costs a model of {depth} layers")
    axes.legend(loc="lower left")
    return figure


def _stacked_bars(names: Sequence[str], parts: Mapping[str, Sequence[int]], xlabel: str) -> Figure:
    """One bar a name, one segment a part with its share of the bar; values are drawn in millions."""
    figure, axes = canvas(height_in=0.9 + 0.34 * len(names))
    sizes = {part: np.array(values) / 1e6 for part, values in parts.items()}
    total = np.sum(list(sizes.values()), axis=0)
    left = np.zeros(len(names))
    for part, size in sizes.items():
        bars = axes.barh(names, size, left=left, color=PARTS.get(part, PALETTE["purple"]), label=part, height=0.72)
        shares = [f"{100 * one / whole:.0f} %" if one > 0.06 * total.max() else ""
                  for one, whole in zip(size, total, strict=True)]
        axes.bar_label(bars, shares, label_type="center", fontsize=8, color="white" if part in _DARK else "black")
        left += size
    axes.bar_label(bars, [human(1e6 * whole) for whole in total], padding=4, fontsize=8)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(parts))
    return figure


def _powers_of_two(axes: Axes, widths: Sequence[int], depths: Sequence[int] = ()) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    if depths:
        axes.set_yscale("log", base=2)
        axes.set_yticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()


# Tokenizer


@style()
def compression_curve(table: pd.DataFrame, blocks: int, chosen: int) -> Figure:
    """Characters per token, and the size of one vocabulary table, against the vocabulary.

    `table` has the columns vocab_size, characters_per_token and table_parameters; `blocks` is the size of the
    transformer blocks, `chosen` the vocabulary of the course.
    """
    figure, (left, right) = canvas(columns=2)
    left.plot(table.vocab_size, table.characters_per_token, "o-", color=PALETTE["blue"])
    left.set(ylim=(0, None), xlabel="vocabulary V, ids", ylabel="characters per token, held out")
    left.set_title("What a larger vocabulary gives")
    right.plot(table.vocab_size, table.table_parameters / 1e6, "o-", color=PARTS["wte"], label="one table, V·D")
    right.axhline(blocks / 1e6, color=PARTS["blocks"], linestyle="--", label="all blocks, 12·L·D²")
    right.set(ylim=(0, None), xlabel="vocabulary V, ids", ylabel="parameters, millions")
    right.set_title("What it costs")
    right.legend(loc="upper left")
    for axes in (left, right):
        _vocabularies(axes, table.vocab_size, chosen)
    return figure


@style()
def cost_of_text(costs: pd.DataFrame, chosen: int) -> Figure:
    """Training FLOPs per character against the vocabulary, relative to the cheapest; a line a column of `costs`.

    `costs` is indexed by vocabulary, one column for each model; a ring marks the cheapest vocabulary.
    """
    figure, axes = canvas()
    for (name, cost), colour in zip(costs.items(), _CURVES, strict=False):
        relative = cost / cost.min()
        axes.plot(relative.index, relative, "o-", color=colour, label=name, markersize=4)
        axes.plot(cost.idxmin(), 1, "o", color=colour, markersize=11, markerfacecolor="none")
    axes.set(xlabel="vocabulary V, ids", ylabel="FLOPs per character, cheapest = 1")
    axes.set_title("The price of the same text")
    axes.legend(loc="upper left")
    _vocabularies(axes, costs.index, chosen)
    return figure


@style()
def token_lengths(in_vocabulary: Sequence[int], in_text: Sequence[int], longest: int = 16) -> Figure:
    """Bars of token lengths in bytes: the share of the vocabulary, and of the tokens of a text, that are so long."""
    figure, axes = canvas()
    bins = np.arange(1, longest + 1)
    for offset, label, lengths, colour in ((-0.2, "of the vocabulary", in_vocabulary, PALETTE["orange"]),
                                           (0.2, "of the tokens of a text", in_text, PALETTE["blue"])):
        counts = np.bincount(np.minimum(lengths, longest), minlength=longest + 1)[1:]
        axes.bar(bins + offset, 100 * counts / counts.sum(), width=0.4, color=colour, label=label)
    axes.set_xticks(bins, [*map(str, bins[:-1]), f"≥{longest}"])
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="length of a token, bytes", ylabel="share, %")
    axes.set_title("Long tokens fill the table, short tokens fill the text")
    axes.legend(loc="upper right")
    return figure


def _vocabularies(axes: Axes, vocab_sizes: Sequence[int], chosen: int) -> None:
    """A logarithmic axis of vocabularies, the chosen one marked."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(vocab_sizes), [f"{size:,}" for size in vocab_sizes], fontsize=8)
    axes.minorticks_off()
    axes.axvline(chosen, color=PALETTE["red"], linewidth=1, linestyle=":", zorder=1)
    axes.annotate("ours", (chosen, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points",
                  va="top", fontsize=8, color=PALETTE["red"])


# Distributed training

@style()
def rank_rows(total_rows: int, device_batch_size: int, world_sizes: Sequence[int]) -> Figure:
    """Which rank takes which rows of one global batch, in which accumulation step; a bar for each world size."""
    figure, axes = canvas(height_in=0.9 + 0.55 * len(world_sizes))
    colours = [PALETTE[name] for name in ("blue", "orange", "green", "purple", "sky", "red", "yellow", "grey")]
    for place, world_size in enumerate(world_sizes):
        for part in range(total_rows // device_batch_size):
            accumulation, rank = divmod(part, world_size)
            axes.barh(place, device_batch_size, left=part * device_batch_size, height=0.72, edgecolor="white",
                      linewidth=1.5, color=colours[rank % len(colours)])
            if total_rows // device_batch_size <= 16:
                axes.text((part + 0.5) * device_batch_size, place, f"rank {rank}\nstep {accumulation + 1}",
                          ha="center", va="center", fontsize=8, color="black" if rank % 8 in (1, 4, 6) else "white")
    axes.set_yticks(range(len(world_sizes)), [f"{size} process{'es' * (size > 1)}" for size in world_sizes])
    axes.set(xlabel="row of the global batch", xlim=(0, total_rows))
    axes.set_title("One batch, however it is shared out")
    axes.invert_yaxis()
    axes.grid(visible=False)
    return figure


@style()
def training_curves(runs: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], note: str = "") -> Figure:
    """Training loss (each step, and a mean over about a twentieth of them) and bits per byte, by name of the run.

    A run is its metrics and its evaluations, each indexed by step, as `Run.metrics` gives them.
    """
    figure, (left, right) = canvas(columns=2)
    for (name, (steps, evaluations)), colour in zip(runs.items(), _CURVES[1:] + _CURVES[:1], strict=False):
        smooth = steps["loss"].rolling(max(1, len(steps) // 20), min_periods=1).mean()
        left.plot(steps.index, steps["loss"], color=colour, linewidth=0.8, alpha=0.35)
        left.plot(steps.index, smooth, color=colour, label=name)
        right.plot(evaluations.index, evaluations["val_bpb"], "o-", color=colour, label=name, markersize=4)
        for at, value in evaluations["val_bpb"].items():
            right.annotate(f"{value:.2f}", (at, value), xytext=(3, 4), textcoords="offset points", fontsize=8,
                           color=colour)
    longest = max(steps.index[-1] for steps, _ in runs.values())
    left.set(xlabel="optimizer steps", ylabel="training loss, nats per token", xlim=(0, longest))
    right.set(xlabel="optimizer steps", ylabel="validation, bits per byte", xlim=(0, 1.15 * longest))
    right.margins(y=0.15)
    left.set_title("What is minimised")
    right.set_title("What we judge by")
    left.legend(loc="upper right")
    if note:
        footnote(figure, note)
    return figure


# Model


@style()
def distance_only(scores_TT: np.ndarray) -> Figure:
    """Scores of one query vector against one key vector at every pair of positions: as a map, and against distance.

    Right, every pair is a dot: where all dots of a distance fall on one another, the scores know nothing but distance.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.2, gridspec_kw={"width_ratios": (1.2, 1)})
    scores_TT = np.asarray(scores_TT)
    image = left.imshow(scores_TT, cmap="magma_r")
    figure.colorbar(image, ax=left, shrink=0.8, label="query · key")
    left.grid(visible=False)
    left.set(xlabel="position of the key", ylabel="position of the query")
    left.set_title("Every pair of positions")
    query, key = np.indices(scores_TT.shape)
    right.plot((query - key).ravel(), scores_TT.ravel(), ".", markersize=3, color=PALETTE["blue"])
    right.set(xlabel="query's minus key's position", ylabel="query · key")
    right.set_title("The same, by distance")
    return figure


@style()
def softcap(caps: Sequence[float] = (5.0, 15.0, 30.0), largest: float = 60.0) -> Figure:
    """What cap·tanh(logit / cap) lets through, and its slope 1 - tanh², the factor on every gradient."""
    figure, (left, right) = canvas(columns=2, height_in=3.0)
    logit = np.linspace(-largest, largest, 401)
    left.plot(logit, logit, color=PALETTE["grey"], linewidth=1, linestyle="--", label="no cap")
    for cap, colour in zip(caps, _CURVES, strict=False):
        left.plot(logit, cap * np.tanh(logit / cap), color=colour, label=f"cap {cap:g}")
        right.plot(logit, 1 - np.tanh(logit / cap) ** 2, color=colour, label=f"cap {cap:g}")
    left.set(ylim=(-40, 40), xlabel="raw logit, nats", ylabel="logit after the cap, nats")
    left.set_title("What comes out")
    left.legend(loc="upper left")
    right.set(ylim=(0, 1.05), xlabel="raw logit, nats", ylabel="slope, nats per nat")
    right.set_title("What is left of the gradient")
    return figure


@style()
def losses_by_step(curves: Mapping[str, Sequence[float]], levels: Mapping[str, float] | None = None,
                   title: str = "") -> Figure:
    """Loss by step, a curve for each name; `levels` are dashed lines at losses that mean something."""
    figure, axes = canvas(height_in=3.0)
    for (name, curve), colour in zip(curves.items(), (_CURVES[1], _CURVES[0], *_CURVES[2:]), strict=False):
        axes.plot(curve, color=colour, label=name)
    for name, level in (levels or {}).items():
        axes.axhline(level, color=PALETTE["grey"], linewidth=1, linestyle="--")
        axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
                      ha="right", fontsize=8)
    axes.set(ylim=(0, None), xlabel="step", ylabel="loss, nats per token")
    axes.set_title(title)
    axes.legend(loc="best")
    return figure


@style()
def gradients(norms: pd.DataFrame) -> Figure:
    """Norm of the gradient of each matrix, by layer: a row of `norms` a layer, a column a kind of matrix."""
    figure, axes = canvas(height_in=3.0)
    for (name, norm), colour in zip(norms.items(), (*_CURVES[:5], PALETTE["black"]), strict=False):
        axes.plot(norms.index, norm, "o-", color=colour, label=name, markersize=4, linewidth=1.3)
    axes.set_yscale("log")
    axes.set_xticks(list(norms.index))
    axes.set(xlabel="layer, 0 reads the embedding", ylabel="norm of the gradient")
    axes.set_title("The gradient in each layer")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


@style()
def singular_values(values: Mapping[str, np.ndarray]) -> Figure:
    """Singular values of matrices of one shape, largest first, each relative to its matrix' largest."""
    figure, axes = canvas(height_in=3.0)
    for (name, singular), colour in zip(values.items(), _CURVES, strict=False):
        axes.plot(np.arange(1, len(singular) + 1), np.asarray(singular) / max(singular), color=colour, label=name)
    axes.set_yscale("log")
    axes.set(xlabel="direction, strongest first", ylabel="singular value, largest = 1")
    axes.set_title("How an update spreads over its directions")
    axes.legend(loc="lower left")
    return figure


@style()
def attention(weights_LNTT: np.ndarray, tokens: Sequence[str]) -> Figure:
    """A heat map of attention weights for each head, a row of maps for each layer; `tokens` label both axes."""
    layers, heads = np.shape(weights_LNTT)[:2]
    figure = Figure(figsize=(7.0, 6.2 * layers / heads), layout="constrained")
    grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    for (layer, head), axes in np.ndenumerate(grid):
        image = axes.imshow(weights_LNTT[layer][head], cmap="magma_r", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}, head {head}")
        axes.set_xticks(range(len(tokens)), tokens, fontsize=6)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=6)
        axes.tick_params(length=0)
        axes.grid(visible=False)
    figure.supxlabel("token that is looked at", fontsize=10)
    figure.supylabel("token that looks", fontsize=10)
    figure.colorbar(image, ax=grid, shrink=0.6, label="attention weight, share of 1")
    return figure


# Evaluation


@style()
def race(evaluations: pd.Series, final: tuple[float, float, float], lines: Mapping[str, float],
         note: str = "") -> Figure:
    """Bits per byte of a run by step, over the lines that compressors draw.

    `final` is what the model needs for the text of the lines, with both ends of its interval; `note` goes below.
    """
    figure, axes = canvas(height_in=3.6)
    last, (value, low, high) = evaluations.index[-1], final
    axes.plot(evaluations.index, evaluations, "o-", color=PALETTE["blue"], markersize=4, label="the model, in training")
    axes.errorbar([1.04 * last], [value], [[value - low], [high - value]], fmt="D", color=PALETTE["red"], capsize=4,
                  markersize=6, label=f"on the text of the lines: {value:.2f}")
    for name, line in lines.items():
        axes.axhline(line, color=PALETTE["black"], linewidth=1.2, linestyle="--")
        axes.annotate(f"{line:.2f} {name}", (1, line), xycoords=("axes fraction", "data"), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=8)
    axes.set(ylim=(0, None), xlim=(-0.02 * last, 1.15 * last), xlabel="optimizer steps", ylabel="bits per byte")
    axes.set_title("What a held-out byte costs")
    axes.legend(loc="lower left")
    if note:
        footnote(figure, note)
    return figure


@style()
def document_scatter(table: pd.DataFrame) -> Figure:
    """A point a document: what `xz` needs against what the model needs, larger documents as larger points.

    `table` has the columns `bytes`, `model` and `xz`, the last two in bits per byte.
    """
    figure, axes = canvas(height_in=3.8)
    wins = table["model"] < table["xz"]
    for chosen, colour, label in ((wins, "blue", "fewer bits by the model"), (~wins, "red", "fewer by xz")):
        part = table[chosen]
        axes.scatter(part["xz"], part["model"], s=2 * np.sqrt(part["bytes"]), color=PALETTE[colour], alpha=0.55,
                     linewidth=0, label=f"{label}: {len(part)}")
    ends = [0.9 * table[["model", "xz"]].min().min(), 1.15 * table[["model", "xz"]].max().max()]
    axes.plot(ends, ends, color=PALETTE["black"], linewidth=1, linestyle="--", label="as many bits")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=(ends[0], 1.3 * table["model"].max()))
    ticks = (0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    axes.set_xticks([tick for tick in ticks if ends[0] < tick < ends[1]])
    axes.set_yticks([tick for tick in ticks if ends[0] < tick < axes.get_ylim()[1]])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set(xlabel="xz -9, bits per byte", ylabel="the model, bits per byte")
    axes.set_title("Each document by itself")
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    for handle in legend.legend_handles[:2]:
        handle.set_sizes([40])
    return figure


@style()
def where_bits_go(by_seen: pd.Series, by_kind: pd.DataFrame) -> Figure:
    """Left: bits per byte by how many tokens the model has seen; right: by kind of document, beside `xz`.

    `by_seen` is indexed by the largest number of tokens of each bin, `by_kind` has the columns `model` and `xz`.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.6)
    left.plot(by_seen.index, by_seen, "o-", color=PALETTE["blue"])
    left.set_xscale("log", base=2)
    left.set_xticks(by_seen.index[::2], [f"{seen:,}" for seen in by_seen.index[::2]])
    left.minorticks_off()
    left.set(ylim=(0, 1.1 * by_seen.max()), xlabel="tokens seen in the window, up to", ylabel="bits per byte")
    left.set_title("By position")
    place = np.arange(len(by_kind))
    right.barh(place - 0.2, by_kind["model"], height=0.4, color=PALETTE["blue"], label="the model")
    right.barh(place + 0.2, by_kind["xz"], height=0.4, color=PALETTE["grey"], label="xz -9, each document")
    right.set_yticks(place, by_kind.index, fontsize=8)
    right.invert_yaxis()
    right.grid(axis="y", visible=False)
    right.set_xlabel("bits per byte")
    right.set_title("By kind")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


# Weight tying


@style()
def tied_start(table: pd.DataFrame, uniform: float, chosen: float) -> Figure:
    """Loss and own-token logit of a tied model before training, against the std that its table is drawn with.

    `table` is indexed by std, with the columns `loss` and `own_logit`; `uniform` is ln V, `chosen` the std of ours.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.2)
    left.plot(table.index, table["loss"], "o-", color=PALETTE["blue"])
    left.axhline(uniform, color=PALETTE["black"], linewidth=1, linestyle="--")
    left.annotate("ln V, a uniform guess", (0.98, uniform), xycoords=("axes fraction", "data"), xytext=(0, -11),
                  textcoords="offset points", ha="right", fontsize=8)
    left.set(ylim=(0, None), ylabel="first loss, nats per token")
    left.set_title("What it costs")
    right.plot(table.index, table["own_logit"], "o-", color=PALETTE["blue"])
    right.set(ylim=(0, None), ylabel="logit of the token just read")
    right.set_title("What it says")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("std of the table")
        axes.axvline(chosen, color=PALETTE["red"], linewidth=1, linestyle=":")
        axes.annotate("ours", (chosen, 0.92), xycoords=("data", "axes fraction"), xytext=(4, 0),
                      textcoords="offset points", fontsize=8, color=PALETTE["red"])
    return figure


@style()
def rate_curves(table: pd.DataFrame, note: str = "") -> Figure:
    """Bits per byte against a learning rate, a column of `table` for each table that has one; rings mark the best.

    What is more than a quarter above the best of all lies outside of the picture.
    """
    figure, axes = canvas(height_in=3.4)
    colours = (PARTS["wte"], PARTS["lm_head"], PALETTE["black"])
    for (name, curve), colour in zip(table.items(), colours, strict=False):
        axes.plot(curve.index, curve, "o-", color=colour, label=name, markersize=4)
        axes.plot(curve.idxmin(), curve.min(), "o", color=colour, markersize=12, markerfacecolor="none")
    axes.set_xscale("log")
    axes.set_xticks(list(table.index), [f"{rate:g}" for rate in table.index])
    axes.minorticks_off()
    axes.set(xlabel="learning rate, before the factor for the width", ylabel="validation, bits per byte",
             ylim=(0.98 * table.min(axis=None), min(1.02 * table.max(axis=None), 1.25 * table.min(axis=None))))
    axes.set_title("One table, two wishes")
    axes.legend(loc="upper center")
    if note:
        footnote(figure, note)
    return figure


@style()
def paired_differences(differences: pd.DataFrame, intervals: Mapping[str, tuple[float, float]],
                       note: str = "") -> Figure:
    """A point a seed, a bar for the interval of their mean; a row a column of `differences`, in bits per byte."""
    figure, axes = canvas(height_in=1.2 + 0.55 * len(intervals))
    for place, (name, (low, high)) in enumerate(intervals.items()):
        axes.plot([low, high], [place, place], color=PALETTE["blue"], linewidth=6, alpha=0.3, solid_capstyle="butt")
        axes.plot(differences[name], [place] * len(differences), "o", color=PALETTE["blue"], markersize=5)
        axes.plot(differences[name].mean(), place, "|", color=PALETTE["black"], markersize=18, markeredgewidth=2)
    axes.axvline(0, color=PALETTE["black"], linewidth=1)
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set_ylim(len(intervals) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="difference, bits per byte; left of zero the first is better")
    axes.set_title("Same seed, same batches: the difference")
    if note:
        footnote(figure, note)
    return figure
