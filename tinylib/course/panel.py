"""What the explorer says of a shape: figures in words, and the same as HTML and as plain text."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

from tinylib import sizing
from tinylib.config import PRESETS, ConfigError, GPTConfig
from tinylib.plots import PALETTE, PARTS, human

PLANNED = ("tokens", "steps", "devices", "micro-batch", "memory of a device", "MFU", "training", "cost")
"""The lines of a plan that the panel shows."""


def figures(config: GPTConfig, device: str = "H100", nproc_per_node: int = 1) -> dict[str, str]:
    """What the panel says of a shape, a line each; a plan that is impossible says why.

    >>> figures(PRESETS["extremist"])["balance"], figures(PRESETS["extremist"])["nearest preset"]
    ('blocks 0.43 points over a third', 'extremist: its depth, width and vocabulary')
    """
    count, token = sizing.parameters(config), sizing.flops_by_part(config)
    lines = {part: f"{getattr(count, part):,} · {share:.2f} %" for part, share in count.split.items()}
    lines["blocks"] += f" · {count.per_layer:,} a layer"
    if config.tied:
        lines["lm_head"] = "the same table as wte"
    return lines | {
        "parameters": f"{count.total:,} · {count.total_tied:,} tied, {count.total_untied:,} untied",
        "balance": balance(config), "nearest preset": nearest_preset(config),
        "FLOPs per token": f"{human(token.total)} in training · {human(token.forward)} to write one",
        "KV cache": f"{sizing.kv_cache_bytes(config) / 1e6:,.1f} MB for {config.seq_len:,} tokens in float32",
        **_planned(config, device, nproc_per_node),
        "ability": sizing.tier(sizing.token_budget(config) * token.total)}


def balance(config: GPTConfig) -> str:
    """How far the blocks are from a third of the parameters, or from half of a tied model's.

    >>> balance(PRESETS["goldilocks"]), balance(GPTConfig(depth=7, dim=384, vocab_size=32_768, tied=True))
    ('exact thirds', 'blocks 0.39 points under a half')
    """
    count = sizing.parameters(config)
    if count.blocks == count.wte:
        return "exact halves" if config.tied else "exact thirds"
    share, name = (1 / 2, "a half") if config.tied else (1 / 3, "a third")
    points = 100 * (count.blocks / count.total - share)
    return f"blocks {abs(points):.2f} points {'over' if points > 0 else 'under'} {name}"


def nearest_preset(config: GPTConfig) -> str:
    """The preset that is nearest, and how far: as the crow flies over log2 of depth, width and vocabulary.

    One doubling of one of them is a distance of 1; heads, tying and context do not count.

    >>> nearest_preset(GPTConfig(depth=8, dim=512, vocab_size=24_576))
    'conventional, 0.62 doublings off: depth × 1.14, width × 1.33, vocabulary × 0.75'
    """
    def ratios(name: str) -> list[float]:
        return [getattr(config, field) / getattr(PRESETS[name], field) for field in ("depth", "dim", "vocab_size")]

    def distance(name: str) -> float:
        return math.hypot(*map(math.log2, ratios(name)))

    name = min(PRESETS, key=distance)
    if not distance(name):
        return f"{name}: its depth, width and vocabulary"
    off = (f"{word} × {ratio:.2f}" for word, ratio in zip(("depth", "width", "vocabulary"), ratios(name), strict=True)
           if ratio != 1)
    return f"{name}, {distance(name):.2f} doublings off: {', '.join(off)}"


def _planned(config: GPTConfig, device: str, nproc_per_node: int) -> dict[str, str]:
    try:
        table = sizing.plan(config, device=device, nproc_per_node=nproc_per_node).table()
    except ConfigError as error:
        return {"plan": "; ".join(error.problems)}
    return {name: table[name] for name in PLANNED} | {"tokens": f"{table['tokens']} · 20 a parameter"}


def panel_html(config: GPTConfig, lines: Mapping[str, str]) -> str:
    """The panel as HTML that survives a sanitiser: tables, and no colour but those of the parts."""
    shares = {part: share for part, share in sizing.parameters(config).split.items() if share}
    bar = "".join(f'<td width="{share:.2f}%" bgcolor="{PARTS[part]}" style="padding:3px 0;border:0;overflow:hidden;'
                  f'text-align:center;color:{"black" if part == "wte" else "white"}">'
                  f'{f"{part} {share:.0f} %" if share > 12 else ""}</td>' for part, share in shares.items())
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
    """A shape in words.

    >>> title(PRESETS["nano"])
    '4 layers × 64 wide, 1 head of 64, vocabulary 3,072, untied, context 2,048'
    """
    def some(count: int, thing: str) -> str:
        return f"{count:,} {thing}{'s' * (count > 1)}"

    return (f"{some(config.depth, 'layer')} × {config.dim:,} wide, {some(config.n_head, 'head')} of {config.head_dim}, "
            f"vocabulary {config.vocab_size:,}, {'tied' if config.tied else 'untied'}, context {config.seq_len:,}")


def words(*lines: str, good: bool = False) -> str:
    """What went wrong, or well, as HTML."""
    text = "<br>".join(html.escape(line) for line in lines)
    return (f'<div style="line-height:1.5;overflow-wrap:anywhere;padding-left:8px;'
            f'border-left:4px solid {PALETTE["green" if good else "red"]}">{text}</div>')
