"""Panel of the explorer: the figures of a shape and of its training plan, as HTML and as plain text."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import replace

from tinylib import sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig, preset_name
from tinylib.experiments import law
from tinylib.plots import PALETTE, PARTS, human

PLANNED = ("vocabulary", "tokens", "steps", "devices", "micro-batch", "memory of a device", "MFU", "training", "cost")
"""The lines of a plan that the panel shows; that of the vocabulary is advice, in some plans only."""


def figures(config: GPTConfig, device: str = "H100", nproc_per_node: int = 1) -> dict[str, str]:
    """The lines of the panel by name; in place of an impossible plan stands its error.

    >>> figures(PRESETS["extremist"])["balance"], figures(PRESETS["extremist"])["nearest preset"]
    ('blocks 0.43 points over a third', 'extremist: its depth, width and vocabulary')
    """
    sheet = sizing.sheet(config)
    lines = {part: f"{sheet[part]:,} · {sheet[f'{part}_percent']:.2f}%" for part in PARTS}
    lines["blocks"] += f" · {sheet['per_layer']:,} a layer"
    if config.tied:
        lines["lm_head"] = "the same table as wte"
    try:
        table = sizing.plan(config, device=device, nproc_per_node=nproc_per_node).table()
        table["tokens"] += " · 20 a parameter"
        plan = {name: table[name] for name in PLANNED if name in table}
    except ConfigError as error:
        plan = {"plan": "; ".join(error.problems)}
    return lines | {
        "parameters": f"{sheet['total']:,} · {sheet['total_tied']:,} tied, {sheet['total_untied']:,} untied",
        "balance": balance(config), "nearest preset": nearest_preset(config),
        "FLOPs per token": f"{human(sheet['flops_per_token'])} in training · {human(sheet['decode_flops'])} "
                           "to write one",
        "KV cache": f"{sheet['kv_cache_bytes'] / 1e6:,.1f} MB for {config.seq_len:,} tokens in float32",
        **plan, "ability": sizing.tier(sheet["training_flops"]), **predicted(config)}


def predicted(config: GPTConfig) -> dict[str, str]:
    """Lines of bits per byte by the law of the records, for the shape and against goldilocks; none without records."""
    import pandas as pd

    fitted = law.fitted()
    if fitted is None:
        return {}
    shapes = pd.DataFrame([sizing.sheet(replace(one, seq_len=config.seq_len))
                           for one in (PRESETS["goldilocks"], config)])
    flops = float(shapes["training_flops"].iloc[1])
    row = fitted.predict(shapes, flops).iloc[1]
    against = f" · {row['difference']:+.3f} ± {row['difference_half']:.3f} against goldilocks"
    return {"bits per byte": f"predicted {row['predicted']:.2f} ± {row['half']:.2f} after these FLOPs"
                             + against * (preset_name(config) != "goldilocks")}


def balance(config: GPTConfig) -> str:
    """Distance of the blocks' share from a third of the parameters, or from half of a tied model's.

    >>> balance(PRESETS["goldilocks"]), balance(GPTConfig(depth=7, dim=384, vocab_size=32_768, tied=True))
    ('exact thirds', 'blocks 0.39 points under a half')
    """
    count = sizing.parameters(config)
    if count.blocks == count.wte:
        return "exact halves" if config.tied else "exact thirds"
    share, name = (50, "a half") if config.tied else (100 / 3, "a third")
    points = count.split["blocks"] - share
    return f"blocks {abs(points):.2f} points {'over' if points > 0 else 'under'} {name}"


def nearest_preset(config: GPTConfig) -> str:
    """The nearest preset by Euclidean distance over log2 of depth, width and vocabulary, and how far it is.

    One doubling of one of the three is a distance of 1; heads, tying and context do not count.

    >>> nearest_preset(GPTConfig(depth=8, dim=512, vocab_size=24_576))
    'conventional, 0.62 doublings off: depth × 1.14, width × 1.33, vocabulary × 0.75'
    """
    ratios = {name: {"depth": config.depth / preset.depth, "width": config.dim / preset.dim,
                     "vocabulary": config.vocab_size / preset.vocab_size} for name, preset in PRESETS.items()}
    distance, name = min((math.hypot(*map(math.log2, ratio.values())), name) for name, ratio in ratios.items())
    if distance == 0:
        return f"{name}: its depth, width and vocabulary"
    off = ", ".join(f"{what} × {ratio:.2f}" for what, ratio in ratios[name].items() if ratio != 1)
    return f"{name}, {distance:.2f} doublings off: {off}"


def panel_html(config: GPTConfig, lines: Mapping[str, str]) -> str:
    """The panel as HTML that survives a sanitiser: tables, and no colour but those of the parts."""
    shares = {part: share for part, share in sizing.parameters(config).split.items() if share}
    bar = "".join(f'<td width="{share:.2f}%" bgcolor="{PARTS[part]}" style="padding:3px 0;border:0;overflow:hidden;'
                  f'text-align:center;color:{"black" if part == "wte" else "white"}">'
                  f'{f"{part} {share:.0f}%" if share > 12 else ""}</td>' for part, share in shares.items())
    squares = {part: f'<span style="color:{colour}">■</span> ' for part, colour in PARTS.items()}
    cell = "padding:0 12px 0 0;border:0;text-align:left;vertical-align:top;line-height:1.5"
    rows = "".join(f'<tr><td style="{cell};white-space:nowrap">{squares.get(name, "")}{html.escape(name)}</td>'
                   f'<td style="{cell}">{html.escape(text)}</td></tr>' for name, text in lines.items())
    return (f'<div style="line-height:1.5;max-width:640px"><b>{html.escape(title(config))}</b>'
            f'<table width="100%" style="table-layout:fixed;width:100%;margin:4px 0;border-spacing:0"><tr>{bar}</tr>'
            f'</table><table style="margin:0;border-spacing:0">{rows}</table></div>')


def panel_text(config: GPTConfig, lines: Mapping[str, str]) -> str:
    """The panel as plain text, the split as a bar of 60 characters."""
    split = sizing.parameters(config).split
    bar = "".join(mark * round(0.6 * share) for mark, share in zip("░█▒", split.values(), strict=True))
    return "\n".join([title(config), f"{bar}  ░ wte  █ blocks  ▒ lm_head",
                      *(f"{name:20}{text}" for name, text in lines.items())])


def title(config: GPTConfig) -> str:
    """Heading of the panel: the shape in words.

    >>> title(PRESETS["nano"])
    '4 layers × 64 wide, 1 head of 64, vocabulary 3,072, untied, context 2,048'
    """
    layers, heads = (f"{count:,} {thing}{'s' * (count > 1)}"
                     for count, thing in ((config.depth, "layer"), (config.n_head, "head")))
    return (f"{layers} × {config.dim:,} wide, {heads} of {config.head_dim}, vocabulary {config.vocab_size:,}, "
            f"{'tied' if config.tied else 'untied'}, context {config.seq_len:,}")


def words(*lines: str, good: bool = False) -> str:
    """A note as HTML: red for errors, green for `good` news."""
    text = "<br>".join(html.escape(line) for line in lines)
    return (f'<div style="line-height:1.5;overflow-wrap:anywhere;padding-left:8px;'
            f'border-left:4px solid {PALETTE["green" if good else "red"]}">{text}</div>')
