"""Where the parameters and the FLOPs of a shape are, and which shapes there are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from tinylib.config import PRESETS, GPTConfig
from tinylib.plots.marks import label_points, name_ends, name_line, stacked_bars
from tinylib.plots.style import CURVES, PALETTE, PARTS, Figure, canvas, human, style
from tinylib.sizing import flops_by_part, layers, missed, parameters, pareto_front

if TYPE_CHECKING:
    import pandas as pd

SCORES = "attention scores"
"""What attention computes without parameters."""
_COLOURS = PARTS | {SCORES: PALETTE["purple"]}
_IN_LAYERS = {"wte": PARTS["wte"], "attention matrices": PALETTE["sky"], "MLP": PALETTE["blue"],
              SCORES: PALETTE["purple"], "lm_head": PARTS["lm_head"]}
"""A block's two halves are two blues."""
_TRIO = ("goldilocks", "conventional", "extremist")


@style()
def parameter_split(configs: Mapping[str, GPTConfig], in_percent: bool = False) -> Figure:
    """Stacked bars of parameters by part, in millions, with each part's share; one bar for each named shape.

    With `in_percent` every bar is 100 % long: for shapes of very different size.

    >>> parameter_split({"goldilocks": PRESETS["goldilocks"]}).axes[0].get_xlabel()
    'parameters, millions'
    """
    counts = [parameters(config) for config in configs.values()]
    return _split_bars(list(configs), {part: [getattr(count, part) for count in counts] for part in PARTS},
                       "parameters", in_percent)


@style()
def compute_split(configs: Mapping[str, GPTConfig], context: int | None = None, in_percent: bool = False) -> Figure:
    """Stacked bars of training FLOPs per token by part, in millions; attention is what grows with `context`.

    The matrices of blocks and head cost 6 FLOPs a parameter, looking up an embedding none ("palm" convention).

    >>> compute_split({"goldilocks": PRESETS["goldilocks"]}, in_percent=True).axes[0].get_xlabel()
    'training FLOPs per token, %'
    """
    tokens = [flops_by_part(config, context) for config in configs.values()]
    parts = {part: [3 * getattr(token, field) for token in tokens]
             for part, field in (("blocks", "blocks"), ("lm_head", "lm_head"), (SCORES, "attention"))}
    return _split_bars(list(configs), parts, "training FLOPs per token", in_percent)


@style()
def layer_profile(config: GPTConfig, context: int | None = None) -> Figure:
    """Parameters (above) and training FLOPs per token (below), layer by layer in the order of the data.

    >>> [axes.get_ylabel() for axes in layer_profile(PRESETS["goldilocks"]).axes]
    ['parameters, millions', 'FLOPs, millions']
    """
    figure, (above, below) = canvas(rows=2, height_in=4.6, sharex=True)
    table, token, depth = layers(config, context), flops_by_part(config, context), config.depth
    scores = 3 * token.attention // depth
    gap = 1 + depth / 24
    place = np.concatenate([[-gap], np.arange(depth), [depth - 1 + gap]])
    _layer_bars(above, place, table["parameters"], 0, "the same table" if config.tied else "")
    _layer_bars(below, place, table["flops"], scores, "")
    step = -(-depth // 12)
    shown = [0, *range(1, depth + 1, step), depth + 1]
    below.set_xticks(place[shown], ["wte", *map(str, range(0, depth, step)), "lm_head"])
    above.set(ylabel="parameters, millions")
    below.set(ylabel="FLOPs, millions", xlabel="layer, in the order of the data")
    above.set_title(f"Parameters: {human(parameters(config).total)}")
    below.set_title(f"Training FLOPs of a token, context {context or config.seq_len:,}: {human(3 * token.forward)}")
    handles = {name: bars for panel in (above, below) for bars, name in zip(*panel.get_legend_handles_labels(),
                                                                            strict=True)}
    figure.legend([handles[name] for name in _IN_LAYERS], list(_IN_LAYERS), loc="outside upper right", ncols=5)
    return figure


@style()
def depth_width_plane(total: float = 38e6, vocab_sizes: Sequence[int] = (16_384, 24_576, 32_768, 65_536),
                      shapes: Mapping[str, GPTConfig] | None = None, max_depth: int = 64,
                      flops: Sequence[float] | None = None, context: int = 2048) -> Figure:
    """The plane of width and depth: a line of `total` parameters (untied) for each vocabulary, and the balanced curve.

    On the balanced curve V = 12·L·D, so that every point splits `total` into exact thirds: 36·L·D² = `total`.
    Dotted are lines of equal training `flops` per token at `context` (None: four round ones).  Where `total` is given
    the vocabulary follows from depth and width, V·D = `total`/2 - 6·L·D², so a token costs 3·`total` + 36·L·D² +
    12·L·D·T.  Hollow points are the other shapes with the size and the exact thirds of one of `shapes`.

    >>> depth_width_plane().axes[0].get_title(loc="left")
    'Ways to spend 38.0M parameters'
    """
    shapes = {name: PRESETS[name] for name in _TRIO} if shapes is None else shapes
    figure, axes = canvas(height_in=4.4)
    thinnest, widest = math.sqrt(total / 36 / max_depth), math.sqrt(total / 36)    # where the balanced curve ends
    dim = np.geomspace(0.7 * thinnest, 1.45 * widest, 400)
    equal = _equal_flops(axes, total, dim, flops, context, max_depth)
    for vocab_size, colour, low in zip(vocab_sizes, cycle(CURVES), cycle((1.05, 1.5)), strict=False):
        depth = (total - 2 * vocab_size * dim) / (12 * dim**2)
        axes.plot(dim, np.where(depth > 0, depth, np.nan), color=colour, linewidth=1.6, label=f"_V {vocab_size}")
        if depth[0] > low:
            name_line(axes, f"V {vocab_size:,}", np.interp(-low, -depth, dim), max(low, depth[-1]))
    axes.plot(dim, total / (36 * dim**2), color=PALETTE["black"], linewidth=3, label="balanced: V = 12·L·D")
    named = _points(axes, list(shapes.items()), PALETTE["red"], "")
    hollow = _points(axes, _other_thirds(shapes, max_depth), "white", "same size, exact thirds")
    _powers_of_two(axes, (dim[0], dim[-1]), depths=(1, max_depth))
    axes.set(xlim=(dim[0], dim[-1]), ylim=(0.8, max_depth * 1.2))
    axes.set(xlabel="width D, numbers per token", ylabel="depth L, layers")
    axes.set_title(f"Ways to spend {human(total)} parameters")
    axes.legend(loc="upper right")
    label_points(axes, named + hollow + equal)
    return figure


@style()
def vocabulary_share(vocab_sizes: Sequence[int] = (8_192, 24_576, 65_536, 131_072), depth: int = 4,
                     shapes: Mapping[str, GPTConfig] | None = None) -> Figure:
    """Share of both tables in an untied model against its width, a line for each vocabulary, at one depth.

    The share is 2·V·D / (2·V·D + 12·L·D²) = V / (V + 6·L·D).  Shapes of another depth are hollow.
    """
    figure, axes = canvas(height_in=3.8)
    dim = np.geomspace(64, 8192, 300)
    ends = {"1 : 1 : 1": (200 / 3, PALETTE["grey"])}
    for vocab_size, colour in zip(vocab_sizes, cycle(CURVES), strict=False):
        share = 100 * vocab_size / (vocab_size + 6 * depth * dim)
        axes.plot(dim, share, color=colour)
        ends[f"V = {vocab_size:,}"] = float(share[-1]), colour
    axes.axhline(200 / 3, color=PALETTE["grey"], linewidth=1, linestyle="--")
    labels = []
    for name, config in (shapes or {}).items():
        share = 100 * 2 * parameters(config).wte / parameters(config).total_untied
        same = config.depth == depth
        axes.plot(config.dim, share, "o", color=PALETTE["red"], markerfacecolor=PALETTE["red"] if same else "white")
        labels.append((name if same else f"{name}: {config.depth} layers", config.dim, share))
    _powers_of_two(axes, (64, 8192))
    axes.set(xlim=(64, 8192), ylim=(0, 102), xlabel="width D, numbers per token", ylabel="both tables, % of parameters")
    axes.set_title(f"What the vocabulary costs a model of {depth} layers")
    name_ends(axes, ends)
    label_points(axes, labels)
    return figure


@style()
def search_map(found: pd.DataFrame) -> Figure:
    """What `sizing.search` found: imbalance against training FLOPs per token, depth as colour.

    The line goes along the shapes that nothing cheaper is better balanced than; ringed points are on the Pareto front
    of all four figures, so that a ring off the line is nearer to the target or smaller in memory.  Below 1 point the
    axis of imbalance is linear, then logarithmic.

    >>> from tinylib.sizing import search
    >>> search_map(search(max_depth=16)).axes[0].get_ylabel()
    'imbalance, points off the wanted split'
    """
    figure, axes = canvas(height_in=4.4)
    cost, imbalance = found["flops_per_token"] / 1e6, found["imbalance"]
    front = found["pareto"].to_numpy(bool)
    edge = pareto_front(found[["flops_per_token", "imbalance"]].to_numpy(float))
    edge = found[edge].drop_duplicates(["flops_per_token", "imbalance"]).sort_values("flops_per_token")
    axes.step(edge["flops_per_token"] / 1e6, edge["imbalance"], where="post", color=PALETTE["black"], linewidth=1,
              label="none is cheaper and better balanced")
    limits = {"vmin": np.log2(found["depth"].min()), "vmax": np.log2(found["depth"].max() + 1e-9)}
    colours = np.log2(found["depth"])
    axes.scatter(cost[~front], imbalance[~front], s=18, c=colours[~front], cmap="cividis", linewidth=0.3,
                 edgecolor=PALETTE["grey"], zorder=3, **limits)
    ringed = axes.scatter(cost[front], imbalance[front], s=48, c=colours[front], cmap="cividis", linewidth=1.4,
                          edgecolor=PALETTE["red"], zorder=3.1, label="on the Pareto front of all four figures",
                          **limits)
    _depth_bar(figure, axes, ringed, found["depth"])
    axes.set_yscale("symlog", linthresh=1, linscale=0.8)
    ticks = [tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50) if tick <= 2 * imbalance.max() + 0.5]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(-0.15, 1.5 * imbalance.max() + 0.5)
    axes.margins(x=0.06)
    axes.set(xlabel="training FLOPs per token, millions", ylabel="imbalance, points off the wanted split")
    axes.set_title(f"What {len(found):,} shape{'s trade' if len(found) > 1 else ' trades'}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    label_points(axes, list(_worth_naming(found)))
    return figure


def _split_bars(names: Sequence[str], parts: Mapping[str, Sequence[int]], what: str, in_percent: bool) -> Figure:
    """Stacked bars in millions or in percent, each part's share in it and the sum beside it."""
    figure, axes = canvas(height_in=0.9 + 0.34 * len(names))
    whole = np.sum(list(parts.values()), axis=0)
    unit = whole / 100 if in_percent else np.full(len(names), 1e6)
    stacked_bars(axes, names, {part: np.array(sizes) / unit for part, sizes in parts.items()}, _COLOURS,
                 lambda size, total: f"{100 * size / total:.0f} %", [human(one) for one in whole])
    axes.set_xlabel(f"{what}, {'%' if in_percent else 'millions'}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(parts))
    return figure


def _layer_bars(axes: Axes, place: np.ndarray, sizes: pd.Series, scores: int, no_head: str) -> None:
    """A panel of `layer_profile`: a bar a layer, in millions, and the shares of both ends and of all blocks."""
    ends, blocks = sizes[["wte", "lm_head"]], sizes.drop(["wte", "lm_head"])
    attention, mlp = blocks[0::2].to_numpy(), blocks[1::2].to_numpy()
    stack = [("attention matrices", attention - scores), ("MLP", mlp)]
    stack += [(SCORES, np.full(len(mlp), scores))] * (scores > 0)
    bottom = np.zeros(len(mlp))
    for part, height in stack:
        axes.bar(place[1:-1], height / 1e6, bottom=bottom / 1e6, color=_IN_LAYERS[part], label=part, width=0.8,
                 edgecolor="white", linewidth=0.4)
        bottom = bottom + height
    for (name, size), at in zip(ends.items(), place[[0, -1]], strict=True):
        axes.bar(at, size / 1e6, color=_IN_LAYERS[name], label=name, width=0.8)
        empty = "0: a look-up" if name == "wte" else f"0: {no_head}"
        axes.annotate(f"{100 * size / sizes.sum():.0f} %" if size else empty, (at, size / 1e6), xytext=(0, 3),
                      textcoords="offset points", ha="center", va="bottom", fontsize=8, rotation=0 if size else 90)
    several = f"{len(mlp)} blocks: " if len(mlp) > 1 else ""
    axes.annotate(f"{several}{100 * blocks.sum() / sizes.sum():.0f} %", (place[1:-1].mean(), bottom[0] / 1e6),
                  xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.18 * max(ends.max(), bottom[0]) / 1e6)


def _equal_flops(axes: Axes, total: float, dim: np.ndarray, flops: Sequence[float] | None, context: int,
                 max_depth: int) -> list[tuple[str, float, float]]:
    """Dotted lines of equal FLOPs per token, as far as a vocabulary has room; returns a label for each."""
    labels: list[tuple[str, float, float]] = []
    if flops is None:    # what the balanced shapes of these depths cost, rounded
        flops = [float(f"{4 * total + 2 * context * math.sqrt(total * depth):.2g}") for depth in (4, 16, 32, 64)]
    for cost in flops:
        depth = (cost - 3 * total) / (36 * dim**2 + 12 * dim * context)
        drawn = (depth > 0.8) & (depth < max_depth) & (12 * depth * dim**2 < total)
        if drawn.any():
            axes.plot(dim, np.where(drawn, depth, np.nan), color=PALETTE["grey"], linewidth=0.9, linestyle=":",
                      label="" if labels else "equal FLOPs per token")
            labels.append((f"{human(cost)} FLOPs", float(dim[drawn][-1]), float(depth[drawn][-1])))
    return labels


def _points(axes: Axes, shapes: Sequence[tuple[str, GPTConfig]], fill: str,
            legend: str) -> list[tuple[str, float, float]]:
    """A point a shape, the first with an entry in the legend; returns their labels."""
    labels: list[tuple[str, float, float]] = []
    for name, config in shapes:
        axes.plot(config.dim, config.depth, "o", color=PALETTE["red"], markerfacecolor=fill, markersize=7, zorder=3,
                  label="" if labels else legend)
        label = f"{config.depth} × {config.dim}, V {config.vocab_size:,}"
        labels.append((f"{name}\n{label}" if name else label, config.dim, config.depth))
    return labels


def _other_thirds(shapes: Mapping[str, GPTConfig], max_depth: int) -> list[tuple[str, GPTConfig]]:
    """The shapes, without names, that split the size of a balanced one of `shapes` into exact thirds, too."""
    found: dict[tuple[int, int], GPTConfig] = {}
    for config in shapes.values():
        if config.vocab_size != 12 * config.depth * config.dim:
            continue
        blocks = config.depth * config.dim**2
        for dim in range(config.head_dim, 32 * config.dim, config.head_dim):
            if blocks % dim**2 == 0 and blocks // dim**2 <= max_depth:
                found[dim, blocks // dim**2] = GPTConfig(blocks // dim**2, dim, 12 * blocks // dim, config.head_dim)
    taken = {(config.dim, config.depth) for config in shapes.values()}
    return [("", config) for place, config in sorted(found.items()) if place not in taken]


def _worth_naming(found: pd.DataFrame) -> Iterator[tuple[str, float, float]]:
    """Labels of the first row, of presets, of what they missed and of both ends of the Pareto front."""
    front = found[found["pareto"]]
    rows = [found.index[0], *found.index[found["preset"] != ""], *missed(found).index[:4],
            front["flops_per_token"].idxmin()]
    for row in dict.fromkeys(rows):
        shape = found.loc[row]
        text = f"{shape['depth']} × {shape['dim']}, V {shape['vocab_size']:,}"
        yield (f"{shape['preset']}\n{text}" if shape["preset"] else text, shape["flops_per_token"] / 1e6,
               shape["imbalance"])


def _depth_bar(figure: Figure, axes: Axes, drawn: object, depth: pd.Series) -> None:
    """What colour means: depth, on a logarithmic scale."""
    bar = figure.colorbar(drawn, ax=axes, label="depth L, layers", aspect=30, pad=0.02)
    ticks = _between(depth.min(), depth.max())
    bar.set_ticks(np.log2(ticks), labels=[str(tick) for tick in ticks])
    bar.outline.set_visible(False)


def _powers_of_two(axes: Axes, widths: tuple[float, float], depths: tuple[float, float] | None = None) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(_between(*widths), [str(width) for width in _between(*widths)])
    if depths:
        axes.set_yscale("log", base=2)
        axes.set_yticks(_between(*depths), [str(depth) for depth in _between(*depths)])
    axes.minorticks_off()


def _between(low: float, high: float) -> list[int]:
    """The powers of two from `low` to `high`.

    >>> _between(90, 600), _between(1, 4)
    ([128, 256, 512], [1, 2, 4])
    """
    return [2**power for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
