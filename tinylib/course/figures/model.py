"""Figures of notebook 03: RoPE, softcap, losses, gradients, singular values, attention maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinylib.plots.style import CURVES, PALETTE, PARTS, Figure, canvas, ink, style

if TYPE_CHECKING:
    import pandas as pd


@style()
def distance_only(scores_TT: np.ndarray) -> Figure:
    """RoPE: scores of one query vector and one key vector at every pair of positions, as a map and against distance.

    On the right every pair is a dot.  Where all dots of a distance coincide, the score depends on distance alone.
    """
    figure, (left, right) = canvas(columns=2, height_in=3.2, gridspec_kw={"width_ratios": (1.2, 1)})
    scores_TT = np.asarray(scores_TT)
    figure.colorbar(left.imshow(scores_TT, cmap="magma_r"), ax=left, shrink=0.8)    # on the right's scale
    left.grid(visible=False)
    left.set(xlabel="position of the key", ylabel="position of the query")
    left.set_title("By pair of positions")
    query, key = np.indices(scores_TT.shape)
    right.plot((query - key).ravel(), scores_TT.ravel(), ".", markersize=3, color=PALETTE["blue"])
    right.set(xlabel="query's minus key's position", ylabel="query · key")
    right.set_title("By distance")
    return figure


@style()
def softcap() -> Figure:
    """The softcap cap·tanh(logit / cap), and its slope 1 - tanh²(logit / cap), a factor of every gradient."""
    figure, (left, right) = canvas(columns=2, height_in=3.0)
    logit = np.linspace(-60, 60, 401)
    left.plot(logit, logit, color=PALETTE["grey"], linewidth=1, linestyle="--", label="no cap")
    for cap, colour in zip((5, 15, 30), CURVES, strict=False):
        left.plot(logit, cap * np.tanh(logit / cap), color=colour, label=f"cap {cap}")
        right.plot(logit, 1 - np.tanh(logit / cap) ** 2, color=colour)
    left.set(ylim=(-40, 40), xlabel="raw logit, nats", ylabel="capped logit, nats")
    left.set_title("Value")
    left.legend(loc="upper left")
    right.set(ylim=(0, 1.05), xlabel="raw logit, nats", ylabel="slope, nats per nat")
    right.set_title("Slope")
    return figure


@style()
def losses_by_step(curves: Mapping[str, Sequence[float]], levels: Mapping[str, float], title: str) -> Figure:
    """Loss by step, a curve for each name; `levels` are dashed lines at reference losses."""
    figure, axes = canvas(height_in=3.0)
    for (name, curve), colour in zip(curves.items(), (CURVES[1], CURVES[0], *CURVES[2:]), strict=False):
        axes.plot(curve, color=colour, label=name)
    for name, level in levels.items():
        axes.axhline(level, color=PALETTE["grey"], linewidth=1, linestyle="--", label=name)
    axes.set(ylim=(0, None), xlabel="step", ylabel="loss, nats per token")
    axes.set_title(title)
    axes.legend(loc="best")
    return figure


@style()
def gradients(norms: pd.DataFrame) -> Figure:
    """Norm of the gradient of each matrix by layer: a row of `norms` a layer, a column a kind of matrix."""
    figure, axes = canvas(height_in=3.0)
    for (name, norm), colour in zip(norms.items(), CURVES, strict=False):
        axes.plot(norms.index, norm, "o-", color=colour, label=name, markersize=4, linewidth=1.3)
    axes.set_yscale("log")
    axes.set_xticks(list(norms.index))
    axes.set(xlabel="layer, 0 reads the embedding", ylabel="norm of the gradient")
    axes.set_title("Gradient norms by layer")
    figure.legend(loc="outside right center")
    return figure


@style()
def singular_values(values: Mapping[str, np.ndarray]) -> Figure:
    """Singular values of matrices of one shape, largest first, each relative to the largest of its matrix."""
    figure, axes = canvas(height_in=3.0)
    for (name, singular), colour in zip(values.items(), CURVES, strict=False):
        axes.plot(np.arange(1, len(singular) + 1), np.asarray(singular) / max(singular), color=colour, label=name)
    axes.set_yscale("log")
    axes.set(xlabel="direction, largest first", ylabel="singular value, largest = 1")
    axes.set_title("Singular values of an update")
    axes.legend(loc="lower left")
    return figure


@style()
def attention(weights_LNTT: np.ndarray, tokens: Sequence[str]) -> Figure:
    """Heat map of attention weights for each head, a row of maps for each layer; `tokens` label both axes.

    Where they are too many for the size of a map, every second or third one does.
    """
    layers, heads = np.shape(weights_LNTT)[:2]
    shown = np.arange(0, len(tokens), -(-heads * len(tokens) // 42))
    figure, grid = canvas(columns=heads, rows=layers, height_in=6.2 * layers / heads, squeeze=False, sharex=True,
                          sharey=True)
    for (layer, head), axes in np.ndenumerate(grid):
        image = axes.imshow(weights_LNTT[layer][head], cmap="magma_r", vmin=0, vmax=1)
        axes.set_title(f"layer {layer}, head {head}")
        axes.set_xticks(shown, [tokens[place] for place in shown], fontsize=8)
        axes.set_yticks(shown, [tokens[place] for place in shown], fontsize=8)
        axes.tick_params(length=0)
        axes.grid(visible=False)
    figure.supxlabel("key token", fontsize=10)
    figure.supylabel("query token", fontsize=10)
    figure.colorbar(image, ax=grid, shrink=0.6, label="attention weight, 0 to 1")
    return figure


_CHAINS: dict[str, tuple[float, str]] = {
    "Model": (1.3, "token ids, BT | wte | RMSNorm | L blocks | RMSNorm | lm_head | softcap | logits, BTV"),
    "One block": (3.9, "stream, BTD | RMSNorm | attention | + | RMSNorm | MLP | + | stream, BTD"),
    "Attention": (6.7, "BTD | query, key, value | RoPE, QK-norm | softmax(q·k / √H) | mean of values | output | BTD"),
    "MLP": (9.2, "BTD | up | ReLU² | down | BTD")}
"""Chains of the block diagram from bottom to top, and where they stand."""

_WITH_WEIGHTS = dict.fromkeys(("L blocks", "attention", "MLP", "query, key, value", "output", "up", "down"),
                              PARTS["blocks"]) | {"wte": PARTS["wte"], "lm_head": PARTS["lm_head"]}


@style()
def block_diagram() -> Figure:
    """Block diagram of the GPT from bottom to top: the model, one block, its attention and its MLP.

    Parts with weights are coloured, parts without are grey; BT, BTD and BTV are shapes.
    """
    figure, axes = canvas(height_in=4.6)
    axes.set(xlim=(0, 10), ylim=(0, 10.4))
    axes.set_axis_off()
    black, step = PALETTE["black"], 1.26
    arrow = {"arrowstyle": "-|>", "color": black, "shrinkA": 0, "shrinkB": 0}
    for title, (x, chain) in _CHAINS.items():
        axes.text(x, 10.0, title, ha="center", weight="bold", fontsize=10)
        for place, text in enumerate(chain.split(" | ")):
            colour = _WITH_WEIGHTS.get(text, "#E8E8E8")
            box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "none"}
            plain = text == "+" or "BT" in text
            axes.text(x, 0.4 + step * place, text, ha="center", va="center", fontsize=8.5,
                      color=black if plain else ink(colour), bbox=None if plain else box)
            if place:
                axes.annotate("", (x, step * place + 0.07), (x, step * place - 0.52), arrowprops=arrow)
    x = _CHAINS["One block"][0]
    for place in (0, 3):    # the stream passes by attention and MLP
        low, high = 0.95 + step * place, 0.4 + step * (place + 3)
        axes.plot([x, x + 1.1, x + 1.1], [low, low, high], color=black, linewidth=1)
        axes.annotate("", (x + 0.15, high), (x + 1.1, high), arrowprops=arrow)
    return figure
