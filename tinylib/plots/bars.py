"""Bar charts of parts: parameters and FLOPs by part and by layer, memory of a training step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from tinylib.checks import check_choice, raise_if
from tinylib.config import GPTConfig
from tinylib.hardware import ACCELERATORS
from tinylib.plots.style import PALETTE, PARTS, Figure, canvas, human, ink, note, style
from tinylib.sizing import Memory, flops_by_part, layers, parameters

if TYPE_CHECKING:
    import pandas as pd

SCORES = "attention scores"
"""FLOPs of attention that involve no parameters."""
_COLOURS = PARTS | {SCORES: PALETTE["purple"], "attention matrices": PALETTE["sky"], "MLP": PALETTE["blue"]}
_IN_LAYERS = ("wte", "attention matrices", "MLP", SCORES, "lm_head")
_MEMORY: dict[str, str] = {
    "weights": PALETTE["blue"], "gradients": PALETTE["sky"], "optimizer": PALETTE["green"],
    "activations": PALETTE["orange"], "recomputed": PALETTE["red"], "loss": PALETTE["yellow"],
    "update": PALETTE["purple"]}
"""Colours of the parts of `Memory`, in the order of a bar."""
_CHARACTER = 0.0145
"""Upper bound for the width of a small character, as a share of the width of the axes."""


@style()
def parameter_split(configs: Mapping[str, GPTConfig], relative: bool = False) -> Figure:
    """Stacked bars of parameters by part with the share of each, one bar a shape; the total stands behind the bar.

    Bars are in millions or, `relative`, in percent, for shapes of very different sizes.

    >>> from tinylib.config import PRESETS
    >>> parameter_split({"goldilocks": PRESETS["goldilocks"]}).axes[0].get_xlabel()
    'parameters, millions'
    """
    figure, axes = canvas(height_in=0.9 + 0.34 * len(configs))
    counts = [parameters(config) for config in configs.values()]
    sizes = [count.split if relative else {part: getattr(count, part) / 1e6 for part in PARTS} for count in counts]
    _stacked_bars(axes, configs, {part: np.array([size[part] for size in sizes]) for part in PARTS}, _COLOURS,
                  lambda size, whole: f"{100 * size / whole:.0f}%", [human(count.total) for count in counts])
    axes.set_xlabel("share of the parameters, %" if relative else "parameters, millions")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(PARTS))
    return figure


@style()
def layer_profile(config: GPTConfig) -> Figure:
    """Bars of parameters (above) and training FLOPs per token (below) by layer, in millions, from input to output.

    >>> from tinylib.config import PRESETS
    >>> [axes.get_ylabel() for axes in layer_profile(PRESETS["goldilocks"]).axes]
    ['parameters, millions', 'FLOPs, millions']
    """
    figure, (above, below) = canvas(rows=2, height_in=4.6, sharex=True)
    table, token, depth = layers(config), flops_by_part(config), config.depth
    _layer_bars(above, table["parameters"], depth, 0, "0: the same table")
    _layer_bars(below, table["flops"], depth, 3 * token.attention // depth, "")
    place, step = _places(depth), -(-depth // 12)
    below.set_xticks(place[[0, *range(1, depth + 1, step), -1]], ["wte", *map(str, range(0, depth, step)), "lm_head"])
    above.set(ylabel="parameters, millions")
    below.set(ylabel="FLOPs, millions", xlabel="layer, from input to output")
    above.set_title(f"Parameters: {human(parameters(config).total)}")
    below.set_title(f"Training FLOPs of a token, context {config.seq_len:,}: {human(3 * token.forward)}")
    handles = {bars.get_label(): bars for bars in below.containers}
    figure.legend([handles[part] for part in _IN_LAYERS], _IN_LAYERS, loc="outside upper right", ncols=5)
    return figure


def _places(depth: int) -> np.ndarray:
    """Positions of the bars of wte, the blocks and lm_head, with a gap between ends and blocks."""
    gap = 1 + depth / 24
    return np.array([-gap, *range(depth), depth - 1 + gap])


def _layer_bars(axes: Axes, sizes: pd.Series, depth: int, scores: int, no_head: str) -> None:
    """One panel of `layer_profile`, with the shares of both ends and of all blocks; `sizes` is of `sizing.layers`."""
    first, *inner, last = _places(depth)
    attention, mlp, block = sizes["block 0 attention"], sizes["block 0 mlp"], 0
    for part, height in (("attention matrices", attention - scores), ("MLP", mlp), (SCORES, scores)):
        axes.bar(inner, height / 1e6, bottom=block / 1e6, color=_COLOURS[part], label=part, edgecolor="white",
                 linewidth=0.4)
        block += height
    texts = [(np.mean(inner), block, depth * block, f"{depth} block{'s' * (depth > 1)}: ", "")]
    for part, at, nothing in (("wte", first, "0: a look-up"), ("lm_head", last, no_head)):
        axes.bar(at, sizes[part] / 1e6, color=_COLOURS[part], label=part)
        texts.append((at, sizes[part], sizes[part], "", nothing))
    for at, height, size, name, nothing in texts:
        axes.annotate(f"{name}{100 * size / sizes.sum():.0f}%" if size else nothing, (at, height / 1e6), xytext=(0, 3),
                      textcoords="offset points", ha="center", va="bottom", fontsize=8, rotation=0 if size else 90)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.18 * max(sizes["wte"], sizes["lm_head"], block) / 1e6)


@style()
def memory_parts(cases: Mapping[str, Memory], device: str | None = None) -> Figure:
    """Stacked bars of the bytes of a training step by part; with `device`, a line at the memory it is sold with.

    A bar is `Memory.at_peak`: what stays, and the largest of three moments (activations and loss, activations and
    what is recomputed, the optimizer's update).  Raises ConfigError for a device not in ACCELERATORS.

    >>> from tinylib import config, sizing
    >>> memory_parts({"micro": sizing.memory(config.PRESETS["micro"], 1)}).axes[0].get_xlabel()
    'memory of one process, MB'
    """
    raise_if("memory_parts", [None if device is None else check_choice("device", device, ACCELERATORS)])
    room = None if device is None else ACCELERATORS[device].memory_bytes
    figure, axes = canvas(height_in=1.1 + 0.34 * len(cases))
    size, unit = (1e9, "GB") if max(case.total for case in cases.values()) >= 1e9 else (1e6, "MB")
    parts = {part: [case.at_peak.get(part, 0) / size for case in cases.values()] for part in _MEMORY}
    ends = [f"{_digits(case.total / size)} {unit}{', too much' * (room is not None and case.total > room)}"
            for case in cases.values()]
    _stacked_bars(axes, cases, {part: sizes for part, sizes in parts.items() if any(sizes)}, _MEMORY,
                  lambda part, _: _digits(part), ends, line=(room or 0) / size)
    if room is not None:
        axes.axvline(room / size, color=PALETTE["black"], linewidth=1.4, linestyle="--")
        axes.annotate(f"{device}: {room / size:g} {unit}", (room / size, 1), xycoords=("data", "axes fraction"),
                      xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xlabel(f"memory of one process, {unit}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(_MEMORY),
                  columnspacing=1.2, handlelength=1.4)
    return figure


def _digits(value: float) -> str:
    """Format with three digits.

    >>> _digits(11), _digits(0.25), _digits(1234)
    ('11.0', '0.250', '1234')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def _stacked_bars(axes: Axes, names: Collection[str], parts: Mapping[str, Sequence[float]], colours: Mapping[str, str],
                  inside: Callable[[float, float], str], ends: Sequence[str], line: float = 0) -> None:
    """Horizontal stacked bars: one bar a name from top to bottom, one segment a part, the text of `ends` behind each.

    `inside(size, whole)` is the text in a segment of a bar of size `whole`; a segment too narrow for it has none.  A
    text that would cross a vertical line at `line` stands behind it.
    """
    whole = np.sum([np.asarray(sizes, float) for sizes in parts.values()], axis=0)
    widths = _CHARACTER * np.array([len(text) + 1 for text in ends])    # of the texts of `ends`, as a share of the axes
    end = (np.maximum(whole, line) / (1 - widths)).max()
    left = np.zeros(len(names))
    for part, sizes in parts.items():
        bars = axes.barh(list(names), sizes, left=left, color=colours[part], label=part, height=0.72, edgecolor="white",
                         linewidth=0.4)
        texts = [inside(size, full) for size, full in zip(sizes, whole, strict=True)]
        axes.bar_label(bars, [text if size > 1.3 * end * _CHARACTER * len(text) else ""
                              for size, text in zip(sizes, texts, strict=True)],
                       label_type="center", fontsize=8, color=ink(colours[part]))
        left = left + sizes
    for place, (text, size, width) in enumerate(zip(ends, whole, widths * end, strict=True)):
        note(axes, text, line if size < line < size + width else size, place, (4, 0), zorder=3)
    axes.set_xlim(0, end)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
