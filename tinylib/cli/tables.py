"""Tables for a terminal, with units that people read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tinylib.config import GPTConfig, preset_name
from tinylib.sizing import duration


def quantity(value: float, unit: str = "") -> str:
    """Three digits with an SI prefix.

    >>> quantity(37_748_736), quantity(201_326_592, "FLOP"), quantity(256), quantity(1.52e17, "FLOP")
    ('37.7M', '201 MFLOP', '256', '152 PFLOP')
    """
    prefixes, power = ["", "k", "M", "G" if unit else "B", "T", "P", "E", "Z"], 0
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{' ' * bool(unit)}{prefixes[power]}{unit}"


def size(count: float) -> str:
    """Bytes in GB from 0.1 GB on, in MB or kB below.

    >>> size(332_201_984), size(33_554_432), size(4_000)
    ('0.33 GB', '33.6 MB', '4 kB')
    """
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else quantity(count, "B")


FORMATS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    (r"bytes(_|$)", size), (r"flops(_|$)", lambda value: quantity(value, "FLOP")),
    (r"_per_s$", "{:,.0f}".format), (r"(^|_)(s|seconds)$", duration),
    (r"(loss|bpb|per_byte|norm|low|high)$", "{:.3f}".format), (r"mfu$", "{:.1%}".format),
    (r"percent$", "{:.1f}%".format))
"""Units by the end of a fact's name, the first that fits."""


def text(name: str, value: Any) -> str:
    """One value with the unit that its name tells.

    >>> text("weight_bytes", 150_994_944), text("total", 37_748_736), text("val_bpb", 1.5062)
    ('0.15 GB', '37.7M (37,748,736)', '1.506')
    """
    if isinstance(value, GPTConfig):
        return model(value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    for pattern, form in FORMATS:
        if re.search(pattern, name):
            return form(value)
    return f"{quantity(value)} ({value:,})" if value >= 1e6 else f"{value:,}"


def model(config: GPTConfig) -> str:
    """A model in one line, with the name of the preset whose shape it has.

    >>> model(GPTConfig(depth=4, dim=64, vocab_size=3072))
    'nano: depth 4, dim 64, 1 × 64 heads, V 3,072, T 2,048'
    """
    name = preset_name(replace(config, seq_len=GPTConfig.seq_len))
    return (f"{name}: " if name else "") + (
        f"depth {config.depth}, dim {config.dim:,}, {config.n_head} × {config.head_dim} heads, "
        f"V {config.vocab_size:,}, T {config.seq_len:,}") + ", tied" * config.tied


def facts(rows: Mapping[str, Any]) -> str:
    """One line a fact, names and values aligned; what isn't known is left out.

    >>> print(facts({"state": "finished", "step": 3, "val_bpb": None}))
    state  finished
    step   3
    """
    shown = {name: value for name, value in rows.items() if value not in (None, [], {})}
    width = max(map(len, shown), default=0)
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {text(name, value)}" for name, value in shown.items())
