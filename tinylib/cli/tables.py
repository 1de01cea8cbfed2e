"""Tables for a terminal, with units that people read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tinylib.config import GPTConfig, preset_name

if TYPE_CHECKING:
    import pandas as pd


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

    >>> size(332_201_984), size(33_554_432), size(24.3e9), size(4_000)
    ('0.33 GB', '33.6 MB', '24.3 GB', '4 kB')
    """
    if count >= 1e8:
        return f"{count / 1e9:.2f} GB" if count < 1e10 else f"{count / 1e9:,.1f} GB"
    return quantity(count, "B")


def duration(seconds: float) -> str:
    """Three digits in the unit that suits them.

    >>> duration(0.0334), duration(48), duration(1_800), duration(12_600), duration(400_000)
    ('33.4 ms', '48 s', '30 min', '3.5 h', '4.63 days')
    """
    for below_s, unit_s, unit in ((1, 1e-3, "ms"), (120, 1, "s"), (7_200, 60, "min"), (259_200, 3_600, "h")):
        if seconds < below_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"


def dollars(usd: float) -> str:
    """US dollars, with cents below ten.

    >>> dollars(1048.71), dollars(0.0274)
    ('$1,049', '$0.03')
    """
    return f"${usd:,.2f}" if usd < 10 else f"${usd:,.0f}"


FORMATS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    (r"bytes(_|$)", size), (r"flops(_|$)", lambda value: quantity(value, "FLOP")), (r"usd$", dollars),
    (r"_per_s$", "{:,.0f}".format), (r"(^|_)(s|seconds)$", duration), (r"hours$", "{:g} h".format),
    (r"(loss|bpb|per_byte|norm)$", "{:.3f}".format), (r"mfu$", "{:.1%}".format), (r"percent$", "{:.1f} %".format))
"""Units by the end of a fact's name, the first that fits."""


def text(name: str, value: Any) -> str:
    """One value with the unit that its name tells.

    >>> text("weight_bytes", 150_994_944), text("total", 37_748_736), text("val_bpb", 1.5062)
    ('0.15 GB', '37.7M (37,748,736)', '1.506')
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    form = next((form for pattern, form in FORMATS if number and re.search(pattern, name)), None)
    if form:
        return form(value)
    if isinstance(value, GPTConfig):
        return model(value)
    if number and value >= 1e6:
        return f"{quantity(value)} ({value:,})"
    return f"{value:,}" if number else str(value)


def model(config: GPTConfig) -> str:
    """A model in one line.

    >>> model(GPTConfig(depth=4, dim=64, vocab_size=3072))
    'nano: depth 4, dim 64, 1 × 64 heads, V 3,072, T 2,048'
    """
    name = preset_name(config, ignore=["seq_len"])
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


def frame(table: pd.DataFrame, index: bool = True) -> str:
    """A DataFrame as text, with empty cells for missing values."""
    shown = table.astype(object).where(table.notna(), "").to_string(index=index, max_colwidth=None)
    return "\n".join(line.rstrip() for line in shown.splitlines())
