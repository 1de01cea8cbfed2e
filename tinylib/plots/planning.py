"""What a training run takes: bytes by part, hours against MFU, the plane of parameters and tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from tinylib.config import PRESETS, GPTConfig
from tinylib.hardware import ACCELERATORS
from tinylib.plots.marks import label_points, name_ends, name_line, stacked_bars
from tinylib.plots.style import CURVES, PALETTE, Figure, canvas, human, style
from tinylib.sizing import (
    BUDGETS,
    TIERS,
    Memory,
    Plan,
    flops_per_token,
    parameters,
    plan,
    plans,
    token_budget,
)

_STAYS = ("weights", "gradients", "optimizer")
_MOMENTS = (("activations", "loss"), ("activations", "recomputed"), ("update",))
"""What of `Memory` is there together, besides what stays."""
_BYTES: dict[str, str] = {
    "weights": PALETTE["blue"], "gradients": PALETTE["sky"], "optimizer": PALETTE["green"],
    "activations": PALETTE["orange"], "recomputed": PALETTE["red"], "loss": PALETTE["yellow"],
    "update": PALETTE["purple"]}
"""Parts of `Memory` in the order of a bar."""
_SHARES = [0.05 * 1.05**step for step in range(58)]
"""Of the peak: 5 to 81 %."""
_ON_THE_PLANE = ("nano", "micro", "mini", "goldilocks", "conventional", "extremist", "nanochat-d20", "nanochat-d26",
                 "nanochat-d32")


@style()
def memory_parts(cases: Mapping[str, Memory], device: str | None = None) -> Figure:
    """Stacked bars of the bytes of a training step by part; with `device` a line at the memory it is sold with.

    A bar is the peak, `Memory.total`: what stays, and the largest of three moments, of which the others are not drawn:
    activations and loss, activations and what is recomputed, or the optimizer's update.  Raises ConfigError for a
    device not in ACCELERATORS.

    >>> from tinylib.sizing import memory
    >>> memory_parts({"micro": memory(PRESETS["micro"], 8, context=256)}).axes[0].get_xlabel()
    'memory of one process, MB'
    """
    raise_if("memory_parts", [None if device is None else check_choice("device", device, ACCELERATORS)])
    room = None if device is None else ACCELERATORS[device].memory_bytes
    figure, axes = canvas(height_in=1.1 + 0.34 * len(cases))
    size, unit = (1e9, "GB") if max(case.total for case in cases.values()) >= 1e9 else (1e6, "MB")
    parts = {part: [_at_peak(case, part) / size for case in cases.values()] for part in _BYTES}
    ends = [f"{_digits(case.total / size)} {unit}{', too much' * (room is not None and case.total > room)}"
            for case in cases.values()]
    stacked_bars(axes, list(cases), {part: sizes for part, sizes in parts.items() if any(sizes)}, _BYTES,
                 lambda part, _: _digits(part), ends, reach=1.06 * (room or 0) / size)
    if room is not None:
        axes.axvline(room / size, color=PALETTE["black"], linewidth=1.4, linestyle="--")
        axes.annotate(f"{device}: {room / size:g} {unit}", (room / size, 1), xycoords=("data", "axes fraction"),
                      xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xlabel(f"memory of one process, {unit}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=len(_BYTES),
                  columnspacing=1.2, handlelength=1.4)
    return figure


@style()
def time_against_mfu(config: GPTConfig, devices: Sequence[str] = ("B200", "H100", "A100", "RTX 4090"),
                     nproc_per_node: int = 8, marks: Mapping[str, tuple[float, float]] | None = None,
                     **settings: Any) -> Figure:
    """Hours of training against MFU, a line for each device; `settings` are further parameters of `sizing.plan`.

    A ring is the plan at the MFU that it assumes, or that `settings` say, with time and cost beside the name; a line
    ends where recomputing and communicating leave no more.  A device without room for the model is named without a
    line.  `marks` are runs by name, each its MFU (a share, as everywhere) and its hours.

    >>> time_against_mfu(PRESETS["mini"]).axes[0].get_ylabel()
    'training, hours'
    """
    figure, axes = canvas(height_in=4.2)
    planned, names = _plans_that_fit(config, devices, nproc_per_node, settings), {}
    for (device, one), colour in zip(planned.items(), cycle(CURVES), strict=False):
        swept = [replace(one, utilisation=share) for share in _SHARES]
        axes.plot([100 * each.mfu for each in swept], [each.train_s / 3600 for each in swept], color=colour)
        axes.plot(100 * one.mfu, one.train_s / 3600, "o", color=colour, markerfacecolor="white", zorder=3)
        names[f"{device}: {_time_and_cost(one)}"] = swept[-1].train_s / 3600, colour
    for mfu, hours in (marks or {}).values():
        axes.plot(100 * mfu, hours, "o", color=PALETTE["red"], markersize=7, zorder=4)
    tokens = settings.get("tokens") or token_budget(config, settings.get("budget", "all"))
    axes.set(yscale="log", xlim=(0, 100 * _SHARES[-1] + 2), xlabel="MFU, % of the peak", ylabel="training, hours")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_title(f"{human(parameters(config).total)} parameters, {human(tokens)} tokens, "
                   f"{nproc_per_node * settings.get('nnodes', 1)} devices")
    _explain_rings(figure, axes, planned, [device for device in devices if device not in planned])
    name_ends(axes, names, gap_pt=12)
    label_points(axes, [(name, 100 * mfu, hours) for name, (mfu, hours) in (marks or {}).items()])
    return figure


@style()
def iso_flop(shapes: Mapping[str, GPTConfig] | None = None, context: int | None = None) -> Figure:
    """The plane of parameters and training tokens with lines of equal training FLOPs, both axes logarithmic.

    A line is where 6·N·D is the same: 6 FLOPs for each of N parameters and each of D tokens, the usual estimate.  A
    model's own count, `flops_per_token`, has attention on top and its embedding for free; so from each of `shapes`,
    at the tokens that Chinchilla's 20 a parameter ask for, a whisker leads to the line that it really belongs to, and
    the label says the factor.  Black are those of TIERS that reach the right edge.

    >>> iso_flop().axes[0].get_xlabel()
    'parameters N'
    """
    shapes = {name: PRESETS[name] for name in _ON_THE_PLANE} if shapes is None else shapes
    figure, axes = canvas(height_in=4.8)
    sizes = np.array([parameters(config).total for config in shapes.values()], float)
    tokens = np.array([token_budget(config) for config in shapes.values()], float)
    flops = tokens * [flops_per_token(config, context) for config in shapes.values()]
    across = np.array([sizes.min() / 4, sizes.max() * 4])
    axes.set(xscale="log", yscale="log", xlim=across, ylim=(tokens.min() / 15, tokens.max() * 15))
    axes.set(xlabel="parameters N", ylabel="training tokens D")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: human(value).replace(".00", "").replace(".0", ""))
    axes.minorticks_off()
    axes.plot(across, BUDGETS["all"].tokens_per_parameter * across, color=PALETTE["blue"],
              label="20 tokens a parameter")
    _flop_lines(axes, flops, across)
    tiers = {fill(f"{_power(one.flops)}: {one.ability}", 20): (one.flops / (6 * across[1]), PALETTE["black"])
             for one in TIERS if axes.get_ylim()[0] < one.flops / (6 * across[1]) < axes.get_ylim()[1]}
    for at_edge, _ in tiers.values():
        axes.plot(across, at_edge * across[1] / across, color=PALETTE["black"], linewidth=1.4)
    axes.vlines(sizes, tokens, flops / (6 * sizes), color=PALETTE["red"], linewidth=1.6)
    axes.plot(sizes, flops / (6 * sizes), "_", color=PALETTE["red"], label="its own FLOPs")
    axes.plot(sizes, tokens, "o", color=PALETTE["red"], markersize=5, zorder=3, label="a shape")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    axes.set_title("Training FLOPs, spent on parameters or on tokens")
    name_ends(axes, tiers, gap_pt=22)
    factors = flops / (6 * sizes * tokens)
    label_points(axes, [(f"{name}, × {factor:.2f}", size, count) for name, factor, size, count
                        in zip(shapes, factors, sizes, tokens, strict=True)])
    return figure


def _flop_lines(axes: Axes, flops: np.ndarray, across: np.ndarray) -> None:
    """Faint lines of equal 6·N·D, one each tenfold, named in the empty half above the points."""
    for power in range(math.floor(math.log10(flops.min())), math.ceil(math.log10(flops.max())) + 1):
        axes.plot(across, 10.0**power / (6 * across), color=PALETTE["grey"], linewidth=0.8, linestyle=":",
                  label="" if len(axes.texts) else "equal 6·N·D")
        size = max(1.6 * across[0], 10.0**power / 6 / (0.6 * axes.get_ylim()[1]),
                   math.sqrt(10.0**power / 6 / 20 / 200))    # 200 times the tokens of the line of 20
        name_line(axes, f"1e{power}", size, 10.0**power / 6 / size)


def _at_peak(case: Memory, part: str) -> int:
    """Bytes of a part at the moment that needs the most: other moments' are gone by then, or not yet there."""
    largest = max(_MOMENTS, key=lambda moment: sum(getattr(case, one) for one in moment))
    return getattr(case, part) if part in largest or part in _STAYS else 0


def _plans_that_fit(config: GPTConfig, devices: Sequence[str], nproc_per_node: int,
                    settings: dict[str, Any]) -> dict[str, Plan]:
    """By device the plan that `sizing.plans` found, for those that it found to fit."""
    micro = plans(config, devices, nproc_per_node, **settings)["micro-batch"]
    return {device: plan(config, device=device, nproc_per_node=nproc_per_node,
                         **settings | {"recompute": "recomputing" in batch})
            for device, batch in micro.items() if batch != "does not fit"}


def _explain_rings(figure: Figure, axes: Axes, planned: Mapping[str, Plan], missing: Sequence[str]) -> None:
    """What a ring is, and which devices have no line."""
    if planned:
        one = next(iter(planned.values()))
        ring = Line2D([], [], color=PALETTE["black"], marker="o", markerfacecolor="white", linestyle="")
        share = f"{100 * one.utilisation:g} % of the peak{' (assumed)' * one.is_assumed}"
        figure.legend([ring], [f"computing at {share}: time and cost at the right"], loc="outside lower center")
    if missing:
        axes.annotate(f"too small for it: {', '.join(missing)}", (0.01, 0.02), xycoords="axes fraction", fontsize=8)


def _time_and_cost(planned: Plan) -> str:
    hours, usd = planned.train_s / 3600, planned.cost_usd
    unit, name = (1, "h") if hours >= 2 else (60, "min") if hours >= 1 / 30 else (3600, "s")
    return f"{_digits(unit * hours)} {name}, ${usd:,.{0 if usd >= 10 else 2}f}"


def _digits(value: float) -> str:
    """Three digits.

    >>> _digits(11), _digits(0.25), _digits(1234)
    ('11.0', '0.250', '1234')
    """
    return f"{value:.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def _power(value: float) -> str:
    """A budget of FLOPs in two digits.

    >>> _power(4e19), _power(1.5e20)
    ('4e19', '1.5e20')
    """
    return f"{value:.2g}".replace("e+", "e")
