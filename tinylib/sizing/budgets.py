"""Token budgets, published runs, and capability by training FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tinylib import checks
from tinylib.config import GPTConfig
from tinylib.sizing.counts import parameters

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Budget:
    """A rule for the tokens of a training run: the parameters that count, and tokens per parameter."""

    counts: tuple[Literal["wte", "blocks", "lm_head"], ...]
    tokens_per_parameter: float
    source: str


BUDGETS: dict[str, Budget] = {
    "all": Budget(("wte", "blocks", "lm_head"), 20, "Hoffmann et al. 2022 (Chinchilla): every parameter counts"),
    "blocks": Budget(("blocks",), 20, "Kaplan et al. 2020 count no vocabulary table; the 20 is still Chinchilla's"),
    "blocks+head": Budget(("blocks", "lm_head"), 11, "nanochat's sweeps of January 2026: 10 to 12, the middle taken"),
}
"""Three conventions of what counts as a parameter."""


def token_budget(config: GPTConfig, budget: str = "all") -> int:
    """Tokens to train on by the rule `budget`; a tied model's table counts as embedding, or else as lm_head.

    >>> from tinylib.config import PRESETS
    >>> token_budget(PRESETS["goldilocks"]), token_budget(PRESETS["goldilocks"], "blocks")
    (754974720, 251658240)
    """
    checks.raise_if("token_budget", [checks.check_choice("budget", budget, BUDGETS)])
    sizes, rule = vars(parameters(config)), BUDGETS[budget]
    if config.tied and "wte" not in rule.counts:
        sizes = sizes | {"lm_head": sizes["wte"]}
    return round(rule.tokens_per_parameter * sum(sizes[part] for part in rule.counts))


@dataclass(frozen=True)
class Published:
    """A run as its authors reported it; None where they do not say."""

    hours: float
    usd: float
    holds: str
    """Scope of hours and dollars."""
    core: float | None
    """CORE, the mean of 22 tasks where 0 is guessing and 1 is perfect (Li et al. 2024, DCLM)."""
    note: str
    source: str

    def __str__(self) -> str:
        return f"{self.hours} h, ${self.usd:,.0f}: {self.holds}"


_README = "nanochat's README and run1000.sh, commit 01f5f10 of 2025-11-20"

PUBLISHED: dict[str, Published] = {
    "nanochat-d20": Published(3.85, 100, "tokenizer to chat model", 0.2219, "3 h 51 min", _README),
    "nanochat-d26": Published(12, 300, "not said", None, "CORE slightly above GPT-2's", _README),
    "nanochat-d32": Published(33, 800, "31.3 h of steps by its log, and the rest of the run", None,
                              "above GPT-2; 8 sequences fill a device", _README),
}
"""All on 8 H100s, together 24 $ an hour."""


def published() -> pd.DataFrame:
    """PUBLISHED as a table, indexed by preset as `specifications` is.

    >>> published()["usd"].to_dict()
    {'nanochat-d20': 100, 'nanochat-d26': 300, 'nanochat-d32': 800}
    """
    import pandas as pd

    return pd.DataFrame(PUBLISHED.values(), index=PUBLISHED)


@dataclass(frozen=True)
class Tier:
    """Capability of a nanochat by its training FLOPs."""

    flops: float
    example: str
    ability: str


TIERS = (Tier(4e19, "nanochat-d20", "talks like a kindergartener"),
         Tier(1.5e20, "nanochat-d26", "about GPT-2's score"), Tier(4.5e20, "nanochat-d32", "GPT-2 and beyond"))
"""In rising order.  Source: nanochat's README of 2025-11-20."""


def tier(flops: float) -> str:
    """`flops` of training as a multiple of the nearest tier below, or a fraction of the lowest.

    >>> tier(1.52e17)
    '1/263 of what nanochat-d20 took (4e+19 FLOPs: talks like a kindergartener)'
    >>> tier(4.54e20)
    '1 × what nanochat-d32 took (4.5e+20 FLOPs: GPT-2 and beyond)'
    """
    checks.raise_if("tier", [checks.check_float("flops", flops, 0, above=True)])
    near = max((one for one in TIERS if 0.95 * one.flops <= flops), key=lambda one: one.flops, default=TIERS[0])
    share = f"{flops / near.flops:.2g} ×" if flops >= 0.5 * near.flops else f"1/{near.flops / flops:,.0f} of"
    return f"{share} what {near.example} took ({near.flops:.2g} FLOPs: {near.ability})"
