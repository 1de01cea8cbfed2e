"""The plan of a batch and of a run: accumulation steps, tokens, FLOPs, time, cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tinylib.config import ConfigError, GPTConfig
from tinylib.hardware import PEAK_FLOPS, peak_flops
from tinylib.sizing.counts import check, flops_per_token, parameters

if TYPE_CHECKING:
    import pandas as pd


def plan_batch(total_batch_size: int, device_batch_size: int, seq_len: int, world_size: int = 1) -> int:
    """Accumulation steps (at least 1) that make a step of `total_batch_size` tokens out of `world_size` processes.

    One process takes `device_batch_size` sequences of `seq_len` tokens at once.  Raises ConfigError: every size that
    is no whole number above zero, or a total that doesn't divide, with the three nearest totals that do.

    >>> plan_batch(524_288, device_batch_size=8, seq_len=2048, world_size=8)
    4
    >>> plan_batch(500_000, device_batch_size=8, seq_len=2048, world_size=8)
    Traceback (most recent call last):
        ...
    tinylib.config.ConfigError: plan_batch: total_batch_size=500000 is not a multiple of device_batch_size × seq_len \
× world_size = 8 × 2048 × 8 = 131072: the nearest that are: 393216, 524288, 655360
    """
    check("plan_batch", whole={"total_batch_size": total_batch_size, "device_batch_size": device_batch_size,
                                "seq_len": seq_len, "world_size": world_size})
    micro = device_batch_size * seq_len * world_size
    if total_batch_size % micro:
        middle = max(2, round(total_batch_size / micro))
        raise ConfigError("plan_batch", [
            f"total_batch_size={total_batch_size} is not a multiple of device_batch_size × seq_len × world_size = "
            f"{device_batch_size} × {seq_len} × {world_size} = {micro}: the nearest that are: "
            + ", ".join(str(count * micro) for count in (middle - 1, middle, middle + 1))])
    return total_batch_size // micro


@dataclass(frozen=True)
class Budget:
    """A rule for how many tokens to train on: which parameters it counts, and tokens for each of them."""

    counts: tuple[Literal["wte", "blocks", "lm_head"], ...]
    tokens_per_parameter: float
    source: str


BUDGETS: dict[str, Budget] = {
    "all": Budget(("wte", "blocks", "lm_head"), 20, "Hoffmann et al. 2022 (Chinchilla): every parameter counts"),
    "blocks": Budget(("blocks",), 20, "Kaplan et al. 2020 count no vocabulary table; the 20 is still Chinchilla's"),
    "blocks+head": Budget(("blocks", "lm_head"), 11, "nanochat's sweeps of January 2026: 10 to 12, the middle taken"),
}
"""What counts as a parameter changes the answer: three conventions, to be shown side by side."""

ASSUMED_MFU = 0.4
"""What a plan takes for the share of peak FLOP/s when it is not told: an assumption, nothing measured."""
CHARACTERS_PER_TEXT_SHARD = 250e6
"""nanochat's text shards, about 100 MB compressed each."""


@dataclass(frozen=True)
class Plan:
    """A training run on paper; `table()` for people, the fields for code."""

    config: GPTConfig
    tokens: int
    """What the budget asks for; the run takes whole steps, `steps × total_batch_size` tokens."""
    characters: float
    text_shards: int
    """Shards of 250M characters to fetch."""
    download_bytes: float
    token_bytes: int
    """The tokens on disk, 2 bytes each while ids fit (V ≤ 65,536), else 4."""
    total_batch_size: int
    accumulation_steps: int
    steps: int
    flops: float
    device: str
    world_size: int
    mfu: float
    mfu_is_assumed: bool
    step_s: float
    train_s: float
    """Training alone: evaluation, checkpoints, compilation, tokenizer and start-up come on top."""
    cost_usd: float

    def table(self) -> pd.Series:
        """The plan, one line each, figures rounded for reading."""
        import pandas as pd

        assumed = " (assumed)" if self.mfu_is_assumed else ""
        return pd.Series({
            "tokens": f"{self.tokens:,}", "characters": f"{self.characters:.3g}",
            "text shards": f"{self.text_shards} ({self.download_bytes / 1e9:.1f} GB compressed)",
            "tokens on disk": f"{self.token_bytes / 1e9:.2f} GB",
            "steps": f"{self.steps:,} × {self.total_batch_size:,} tokens",
            "accumulation steps": str(self.accumulation_steps), "training FLOPs": f"{self.flops:.4g}",
            "devices": f"{self.world_size} × {self.device}", "MFU": f"{100 * self.mfu:.1f} %{assumed}",
            "step": _duration(self.step_s), "training": _duration(self.train_s),
            "cost": f"${self.cost_usd:.2f}"}, name="plan")


def _duration(seconds: float) -> str:
    """Three digits in a unit that suits them.

    >>> _duration(0.0334), _duration(48), _duration(1800), _duration(112_716)
    ('0.0334 s', '48 s', '30 min', '31.3 h')
    """
    unit_s, unit = (1, "s") if seconds < 120 else (60, "min") if seconds < 7200 else (3600, "h")
    return f"{seconds / unit_s:.3g} {unit}"


def token_budget(config: GPTConfig, budget: str = "all") -> int:
    """Tokens to train on by the rule called `budget`; a tied model's table counts as the matrix it is used as.

    >>> from tinylib.config import PRESETS
    >>> token_budget(PRESETS["goldilocks"]), token_budget(PRESETS["goldilocks"], "blocks")
    (754974720, 251658240)
    """
    if budget not in BUDGETS:
        raise ConfigError("token_budget", [f"budget={budget!r} is not known: use " + ", ".join(BUDGETS)])
    count, rule = parameters(config), BUDGETS[budget]
    sizes = {"wte": count.wte, "blocks": count.blocks, "lm_head": count.lm_head}
    if config.tied and "wte" not in rule.counts:
        sizes["lm_head"] = count.wte
    return round(rule.tokens_per_parameter * sum(sizes[part] for part in rule.counts))


def plan(config: GPTConfig, tokens: int | None = None, budget: str = "all", total_batch_size: int = 524_288,
         device_batch_size: int = 32, world_size: int = 1, device: str = "H100", mfu: float | None = None,
         characters_per_token: float = 4.8, usd_per_device_hour: float = 3.0) -> Plan:
    """The run that trains `config` on `tokens` tokens (None: what `budget` says) on `world_size` of `device`.

    Time is FLOPs / (devices × peak × MFU), FLOPs in the PaLM convention, as published MFU figures are.
    4.8 characters a token was measured for a 65,536 vocabulary on FineWeb-Edu: a smaller vocabulary compresses less,
    so give your tokenizer's own figure.  3 $ a device-hour is what nanochat's published costs assume.
    Raises ConfigError.  Source: checked against nanochat's published d32 run (step time, steps, FLOPs).

    >>> from tinylib.config import PRESETS
    >>> d32 = plan(PRESETS["nanochat-d32"], device_batch_size=8, world_size=8, mfu=0.509)
    >>> d32.steps, d32.accumulation_steps, f"{d32.step_s:.2f} s, {d32.flops:.3e} FLOPs"
    (71680, 4, '1.57 s, 4.540e+20 FLOPs')
    """
    peak = peak_flops(device)
    share = ASSUMED_MFU if mfu is None else mfu
    problems = [] if peak else [f"device={device!r} has no known peak: use one of " + ", ".join(PEAK_FLOPS)]
    problems += [] if 0 < share <= 1 else [f"mfu={mfu!r} is not a share of the peak: use a number above 0, at most 1"]
    check("plan", problems, whole={} if tokens is None else {"tokens": tokens},
           positive={"characters_per_token": characters_per_token, "usd_per_device_hour": usd_per_device_hour})
    accumulation = plan_batch(total_batch_size, device_batch_size, config.seq_len, world_size)
    tokens = token_budget(config, budget) if tokens is None else tokens
    steps, characters = math.ceil(tokens / total_batch_size), tokens * characters_per_token
    shards = math.ceil(characters / CHARACTERS_PER_TEXT_SHARD)
    step_flops = flops_per_token(config) * total_batch_size
    step_s = step_flops / (world_size * (peak or 1) * share)
    return Plan(config, tokens, characters, shards, shards * 100e6, tokens * (2 if config.vocab_size <= 65_536 else 4),
                total_batch_size, accumulation, steps, float(step_flops * steps), device, world_size, share,
                mfu is None, step_s, steps * step_s, steps * step_s / 3600 * world_size * usd_per_device_hour)
