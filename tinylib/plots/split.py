"""Parameters and FLOPs of a shape by part and by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from tinylib.config import GPTConfig
from tinylib.plots.marks import stacked_bars
from tinylib.plots.style import PALETTE, PARTS, Figure, canvas, human, style
from tinylib.sizing import flops_by_part, layers, parameters

if TYPE_CHECKING:
    import pandas as pd

SCORES = "attention scores"
"""What attention computes without parameters."""
_COLOURS = PARTS | {SCORES: PALETTE["purple"], "attention matrices": PALETTE["sky"], "MLP": PALETTE["blue"]}
_IN_LAYERS = ("wte", "attention matrices", "MLP", SCORES, "lm_head")


@style()
def parameter_split(configs: Mapping[str, GPTConfig], in_percent: bool = False) -> Figure:
    """Stacked bars of parameters by part, in millions, with the share of each part; one bar a shape.

    With `in_percent` every bar is 100 % long, for shapes of very different size.

    >>> from tinylib.config import PRESETS
    >>> parameter_split({"goldilocks": PRESETS["goldilocks"]}).axes[0].get_xlabel()
    'parameters, millions'
    """
    counts = [parameters(config) for config in configs.values()]
    return _split_bars(list(configs), {part: [getattr(count, part) for count in counts] for part in PARTS},
                       "parameters", in_percent)


@style()
def compute_split(configs: Mapping[str, GPTConfig], context: int | None = None, in_percent: bool = False) -> Figure:
    """Stacked bars of training FLOPs per token by part, in millions; attention scores grow with `context`.

    The matrices of blocks and head cost 6 FLOPs a parameter, looking up an embedding none ("palm" convention).

    >>> from tinylib.config import PRESETS
    >>> compute_split({"goldilocks": PRESETS["goldilocks"]}, in_percent=True).axes[0].get_xlabel()
    'training FLOPs per token, %'
    """
    tokens = [flops_by_part(config, context) for config in configs.values()]
    parts = {part: [3 * getattr(token, field) for token in tokens]
             for part, field in (("blocks", "blocks"), ("lm_head", "lm_head"), (SCORES, "attention"))}
    return _split_bars(list(configs), parts, "training FLOPs per token", in_percent)


def _split_bars(names: Sequence[str], parts: Mapping[str, Sequence[int]], what: str, in_percent: bool) -> Figure:
    """Stacked bars in millions or in percent, with the share of each part, and the total behind each bar."""
    figure, axes = canvas(height_in=0.9 + 0.34 * len(names))
    whole = np.sum(list(parts.values()), axis=0)
    unit = whole / 100 if in_percent else np.full(len(names), 1e6)
    stacked_bars(axes, names, {part: np.array(sizes) / unit for part, sizes in parts.items()}, _COLOURS,
                 lambda size, total: f"{100 * size / total:.0f} %", [human(one) for one in whole])
    axes.set_xlabel(f"{what}, {'%' if in_percent else 'millions'}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(parts))
    return figure


@style()
def layer_profile(config: GPTConfig, context: int | None = None) -> Figure:
    """Bars of parameters (above) and training FLOPs per token (below) by layer, in millions, from input to output.

    >>> from tinylib.config import PRESETS
    >>> [axes.get_ylabel() for axes in layer_profile(PRESETS["goldilocks"]).axes]
    ['parameters, millions', 'FLOPs, millions']
    """
    figure, (above, below) = canvas(rows=2, height_in=4.6, sharex=True)
    table, token, depth = layers(config, context), flops_by_part(config, context), config.depth
    _layer_bars(above, table["parameters"], 0, "0: the same table")
    _layer_bars(below, table["flops"], 3 * token.attention // depth, "")
    place, step = _places(depth), -(-depth // 12)
    below.set_xticks(place[[0, *range(1, depth + 1, step), -1]], ["wte", *map(str, range(0, depth, step)), "lm_head"])
    above.set(ylabel="parameters, millions")
    below.set(ylabel="FLOPs, millions", xlabel="layer, from input to output")
    above.set_title(f"Parameters: {human(parameters(config).total)}")
    below.set_title(f"Training FLOPs of a token, context {context or config.seq_len:,}: {human(3 * token.forward)}")
    handles = {bars.get_label(): bars for bars in below.containers}
    figure.legend([handles[part] for part in _IN_LAYERS], _IN_LAYERS, loc="outside upper right", ncols=5)
    return figure


def _places(depth: int) -> np.ndarray:
    """Where the bars of wte, the blocks and lm_head are, with a gap between ends and blocks."""
    gap = 1 + depth / 24
    return np.array([-gap, *range(depth), depth - 1 + gap])


def _layer_bars(axes: Axes, sizes: pd.Series, scores: int, no_head: str) -> None:
    """One panel of `layer_profile`, with the shares of both ends and of all blocks; `sizes` as `sizing.layers` has
    them."""
    blocks = sizes.drop(["wte", "lm_head"]).to_numpy()
    attention, mlp, depth = blocks[0::2], blocks[1::2], len(blocks) // 2
    first, *inner, last = _places(depth)
    bottom = np.zeros(depth)
    for part, height in (("attention matrices", attention - scores), ("MLP", mlp), (SCORES, np.full(depth, scores))):
        axes.bar(inner, height / 1e6, bottom=bottom / 1e6, color=_COLOURS[part], label=part, edgecolor="white",
                 linewidth=0.4)
        bottom = bottom + height
    texts = [(np.mean(inner), bottom[0], f"{depth} block{'s' * (depth > 1)}: ", "")]
    for part, at, nothing in (("wte", first, "0: a look-up"), ("lm_head", last, no_head)):
        axes.bar(at, sizes[part] / 1e6, color=_COLOURS[part], label=part)
        texts.append((at, sizes[part], "", nothing))
    whole = sizes.sum()
    for (at, height, name, nothing), size in zip(texts, (blocks.sum(), sizes["wte"], sizes["lm_head"]), strict=True):
        axes.annotate(f"{name}{100 * size / whole:.0f} %" if size else nothing, (at, height / 1e6), xytext=(0, 3),
                      textcoords="offset points", ha="center", va="bottom", fontsize=8, rotation=0 if size else 90)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.18 * max(sizes["wte"], sizes["lm_head"], bottom[0]) / 1e6)
