"""Planning of a batch and of a run: micro-batch, accumulation steps, tokens, FLOPs, memory, time, cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinylib import checks
from tinylib.config import GPTConfig, batch_problem
from tinylib.hardware import ACCELERATORS, Accelerator
from tinylib.sizing.budgets import BUDGETS, token_budget
from tinylib.sizing.counts import flops_per_token
from tinylib.sizing.memory import BYTES, Memory, Precision, chunk_rows, largest_batch, memory, weight_bytes

if TYPE_CHECKING:
    import pandas as pd

ASSUMED_MFU = 0.4
"""Share of peak FLOP/s of a plan that is not given one: an assumption, not a measurement."""
NETWORK = 50e9
"""Bytes a second between machines, per device: an assumption, 400 Gb/s InfiniBand as in an NVIDIA DGX H100, where all
devices of a machine send at once."""


def plan_batch(total_batch_size: int, device_batch_size: int, seq_len: int, world_size: int = 1) -> int:
    """Gradient accumulation steps (at least 1) of a batch of `total_batch_size` tokens on `world_size` processes.

    A micro-batch is `device_batch_size` sequences of `seq_len` tokens.  Raises ConfigError for sizes that are not
    whole numbers above zero, and for a total that doesn't divide, with the three nearest that do.

    >>> plan_batch(524_288, device_batch_size=8, seq_len=2048, world_size=8)
    4
    """
    sizes = {"total_batch_size": total_batch_size, "device_batch_size": device_batch_size, "seq_len": seq_len,
             "world_size": world_size}
    checks.raise_if("plan_batch", [checks.check_int(name, value) for name, value in sizes.items()])
    checks.raise_if("plan_batch", [batch_problem(**sizes)])
    return total_batch_size // (device_batch_size * seq_len * world_size)


@dataclass(frozen=True)
class Plan:
    """A training run on paper."""

    config: GPTConfig
    tokens: int
    """Of the budget; the run takes whole steps, `steps × total_batch_size` tokens."""
    total_batch_size: int
    device_batch_size: int
    recompute: bool
    device: str
    nproc_per_node: int
    nnodes: int
    utilisation: float
    """Share of the peak at which a device computes between communications."""
    is_assumed: bool
    """Whether the utilisation is ASSUMED_MFU."""
    characters_per_token: float
    usd_per_device_hour: float

    @property
    def accelerator(self) -> Accelerator:
        """Data of the device."""
        return ACCELERATORS[self.device]

    @property
    def world_size(self) -> int:
        """Processes, one per device."""
        return self.nnodes * self.nproc_per_node

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one process in a step."""
        return plan_batch(self.total_batch_size, self.device_batch_size, self.config.seq_len, self.world_size)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.tokens / self.total_batch_size)

    @property
    def characters(self) -> float:
        """Characters of text that make the tokens."""
        return self.tokens * self.characters_per_token

    @property
    def text_shards(self) -> int:
        """nanochat's text shards to download: 250M characters and, compressed, about 100 MB each."""
        return math.ceil(self.characters / 250e6)

    @property
    def token_bytes(self) -> int:
        """Bytes of the tokens on disk, 2 each for V ≤ 65,536, else 4."""
        return self.tokens * (2 if self.config.vocab_size <= 65_536 else 4)

    @property
    def vocab_padded(self) -> int:
        """Vocabulary size padded to a multiple of 64, with which tensor cores are most efficient in 16 bits.

        Source: https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication, section 3.
        """
        return 64 * math.ceil(self.config.vocab_size / 64)

    @property
    def memory(self) -> Memory:
        """Memory of one process in bfloat16."""
        rows = chunk_rows(self.config.vocab_size, self.accelerator.memory_bytes)
        return memory(self.config, self.device_batch_size, "bfloat16", self.recompute, rows)

    @property
    def largest_batch(self) -> int:
        """Sequences that fit the memory of a device."""
        return largest_batch(self.config, self.accelerator.memory_bytes, recompute=self.recompute)

    @property
    def flops(self) -> float:
        """FLOPs of the model in the whole run, without recomputation."""
        return float(flops_per_token(self.config) * self.total_batch_size * self.steps)

    @property
    def communication_s(self) -> float:
        """Least seconds of a step spent on communication, see `communication_s`."""
        return communication_s(self.config, self.accelerator, self.nproc_per_node, self.nnodes)

    @property
    def step_s(self) -> float:
        """Seconds of a step: compute at the utilisation, then communicate, without overlap, as `tinylib.train` does."""
        flops = flops_per_token(self.config, recompute=self.recompute) * self.total_batch_size
        return flops / (self.world_size * self.accelerator.peak_flops * self.utilisation) + self.communication_s

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: share of the peak, with recomputation and communication counted as lost time."""
        return self.flops / self.steps / (self.step_s * self.world_size * self.accelerator.peak_flops)

    @property
    def train_s(self) -> float:
        """Seconds of the steps alone, without evaluation, checkpoints, compilation and start-up."""
        return self.steps * self.step_s

    @property
    def cost_usd(self) -> float:
        """Price of `train_s` on all devices."""
        return self.train_s / 3600 * self.world_size * self.usd_per_device_hour

    def figures(self) -> dict[str, Any]:
        """Every figure by its name, unrounded."""
        computed = [name for name, value in vars(Plan).items() if isinstance(value, property) and name != "accelerator"]
        return vars(self) | {name: getattr(self, name) for name in computed}

    def table(self) -> pd.Series:
        """The plan, one line each, figures rounded for reading."""
        import pandas as pd

        assumed = " (assumed)" if self.is_assumed else ""
        again = ", activations recomputed" if self.recompute else ""
        machines = f"{self.nnodes} nodes of " if self.nnodes > 1 else ""
        padded, size = self.vocab_padded, self.config.vocab_size
        advice = f"{size:,} is not a multiple of 64, which slows tensor cores: use {padded:,}"
        return pd.Series({
            **({} if padded == size else {"vocabulary": advice}),
            "tokens": f"{self.tokens:,}", "characters": f"{self.characters:.3g}",
            "text shards": f"{self.text_shards} ({self.text_shards * 0.1:.1f} GB compressed)",
            "tokens on disk": f"{self.token_bytes / 1e9:.2f} GB",
            "steps": f"{self.steps:,} × {self.total_batch_size:,} tokens",
            "devices": f"{machines}{self.nproc_per_node} × {self.device}",
            "micro-batch": f"{self.device_batch_size} sequences ({self.largest_batch} would fit{again})",
            "memory of a device": f"{self.memory.total / 1e9:.1f} of {self.accelerator.memory_bytes / 1e9:.0f} GB",
            "accumulation steps": str(self.accumulation_steps),
            "training FLOPs": f"{self.flops:.4g}", "MFU": f"{100 * self.mfu:.1f}%{assumed}",
            "step": f"{duration(self.step_s)}, of it communication at least {duration(self.communication_s)}",
            "training": duration(self.train_s), "cost": f"${self.cost_usd:,.2f}"}, name="plan")


def duration(seconds: float) -> str:
    """Three digits in a unit that suits them.

    >>> duration(0.0334), duration(48), duration(1800), duration(112_716), duration(400_000)
    ('33.4 ms', '48 s', '30 min', '31.3 h', '4.63 days')
    """
    for below_s, unit_s, unit in ((1, 1e-3, "ms"), (120, 1, "s"), (7_200, 60, "min"), (259_200, 3_600, "h")):
        if seconds < below_s:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"


def communication_s(config: GPTConfig, accelerator: Accelerator, nproc_per_node: int, nnodes: int = 1,
                    dtype: Precision = "bfloat16") -> float:
    """Least seconds of a step for the all-reduce of float32 gradients and the all-gather of Muon's updates in `dtype`.

    A ring sends 2·(n - 1)/n of the gradients' bytes and (n - 1)/n of `gathered_bytes` over its slowest link, without
    overlap with compute.  Between machines there are as many rings as devices per machine, each over its own link.
    Source: Patarasuk and Yuan 2009, section 3 (the ring is bandwidth-optimal).

    >>> from tinylib.config import PRESETS
    >>> f"{communication_s(PRESETS['goldilocks'], ACCELERATORS['H100'], 8):.5f}"
    '0.00067'
    """
    world_size = nproc_per_node * nnodes
    sent = (2 * weight_bytes(config) + gathered_bytes(config, world_size, dtype)) * (world_size - 1) / world_size
    return sent / (accelerator.link if nnodes == 1 else min(accelerator.link, nproc_per_node * NETWORK))


def gathered_bytes(config: GPTConfig, world_size: int, dtype: Precision = "bfloat16") -> int:
    """Bytes of the all-gather of Muon's updates, which are in the precision of its iteration, with its padding.

    Every process contributes equally many matrices of a shape, so the last ones are padding if they don't divide.

    >>> from tinylib.config import PRESETS, GPTConfig
    >>> [gathered_bytes(PRESETS["goldilocks"], count) // 2**20 for count in (1, 2, 4, 8, 32)]
    [24, 24, 24, 40, 144]
    """
    shapes = Counter(spec.shape for spec in config.tensors() if spec.role == "matrix")
    return BYTES[dtype] * sum(math.prod(shape) * world_size * math.ceil(count / world_size)
                              for shape, count in shapes.items())


def plan(config: GPTConfig, tokens: int | None = None, budget: str = "all", total_batch_size: int = 524_288,
         device_batch_size: int | None = None, nproc_per_node: int = 1, nnodes: int = 1, device: str = "H100",
         mfu: float | None = None, recompute: bool = False, characters_per_token: float = 4.8,
         usd_per_device_hour: float | None = None) -> Plan:
    """Plan to train `config` on `tokens` tokens (None: those of `budget`) with `nnodes` × `nproc_per_node` devices.

    `device_batch_size` None takes the largest micro-batch that fits the device and divides the batch.  Time is FLOPs /
    (devices × peak × MFU), FLOPs in the PaLM convention as in published figures, plus communication, which does not
    overlap; `recompute` repeats the blocks' forward pass.  4.8 characters a token was measured for a vocabulary
    of 65,536 on FineWeb-Edu; a smaller one compresses less.  The price is that of ACCELERATORS if not given.  Raises
    ConfigError with every problem and the nearest legal values.
    Source: steps, FLOPs and the micro-batch that just fits are those of nanochat's published d32 run, whose step took
    1.572 s, communication included.

    >>> from tinylib.config import PRESETS
    >>> d32 = plan(PRESETS["nanochat-d32"], nproc_per_node=8, mfu=0.509)
    >>> d32.steps, d32.device_batch_size, d32.accumulation_steps, f"{d32.step_s:.2f} s, {d32.flops:.3e} FLOPs"
    (71680, 8, 4, '1.61 s, 4.540e+20 FLOPs')
    """
    share = ASSUMED_MFU if mfu is None else mfu
    counts = {"tokens": 1 if tokens is None else tokens, "total_batch_size": total_batch_size,
              "device_batch_size": 1 if device_batch_size is None else device_batch_size,
              "nproc_per_node": nproc_per_node, "nnodes": nnodes}
    checks.raise_if("plan", [
        checks.check_choice("device", device, ACCELERATORS), checks.check_choice("budget", budget, BUDGETS),
        *(checks.check_int(name, value) for name, value in counts.items()),
        checks.check_float("mfu", share, 0, 1, above=True), checks.check_choice("recompute", recompute, (True, False)),
        checks.check_float("characters_per_token", characters_per_token, 0, above=True),
        None if usd_per_device_hour is None else checks.check_float("usd_per_device_hour", usd_per_device_hour, 0)])
    micro = _micro_batch(config, total_batch_size, device_batch_size, nproc_per_node * nnodes, device, recompute)
    price = ACCELERATORS[device].usd_per_hour if usd_per_device_hour is None else usd_per_device_hour
    return Plan(config, token_budget(config, budget) if tokens is None else tokens, total_batch_size, micro, recompute,
                device, nproc_per_node, nnodes, share, mfu is None, characters_per_token, price)


def _micro_batch(config: GPTConfig, total_batch_size: int, asked: int | None, world_size: int, device: str,
                 recompute: bool) -> int:
    """The given micro-batch, or the largest legal one; raises ConfigError if it doesn't divide the batch or fit."""
    room, least = ACCELERATORS[device].memory_bytes, asked or 1
    most = largest_batch(config, room, recompute=recompute)
    problems = [batch_problem(total_batch_size, least, config.seq_len, world_size)]
    if most < least:
        needs = memory(config, least, "bfloat16", recompute, chunk_rows(config.vocab_size, room)).total
        again = 0 if recompute else largest_batch(config, room, recompute=True)
        fixes = [f"at most {most}"] * (most > 0) + [f"recompute, with which {again} fit"] * (again > most)
        problems.append(f"device_batch_size={least} of {config.seq_len} tokens needs {needs / 1e9:.1f} GB and "
                        f"{device} has {room / 1e9:.0f}: use {' or '.join([*fixes, 'another device'])}")
    checks.raise_if("plan", problems)
    shares = total_batch_size // (config.seq_len * world_size)
    return asked or max(size for size in range(1, min(most, shares) + 1) if shares % size == 0)


def plans(config: GPTConfig, devices: Sequence[str] = tuple(ACCELERATORS), nproc_per_node: int = 8, nnodes: int = 1,
          **settings: Any) -> pd.DataFrame:
    """The plan on each of `devices`, a row each; `settings` are further parameters of `plan`.

    Where the activations do not fit, the plan recomputes them; where the model does not fit at all, the row says so.
    Raises ConfigError as `plan` does.

    >>> from tinylib.config import PRESETS
    >>> plans(PRESETS["nanochat-d32"], ["H100", "RTX 4090"])["micro-batch"].tolist()
    ['8', 'does not fit']
    """
    import pandas as pd

    checks.raise_if("plans", [checks.check_choice("devices", device, ACCELERATORS) for device in devices])
    rows, least = {}, settings.get("device_batch_size") or 1
    for device in devices:
        known, facts = ACCELERATORS[device], {"micro-batch": "does not fit"}
        again = largest_batch(config, known.memory_bytes) < least
        if largest_batch(config, known.memory_bytes, again) >= least:
            made = plan(config, nproc_per_node=nproc_per_node, nnodes=nnodes, device=device,
                        **settings | {"recompute": again})
            facts = {"micro-batch": f"{made.device_batch_size}" + " (recomputing)" * made.recompute,
                     "accumulation": made.accumulation_steps, "MFU, %": 100 * made.mfu, "step, s": made.step_s,
                     "hours": made.train_s / 3600, "USD": made.cost_usd}
        rows[device] = {"peak, TFLOP/s": known.peak_flops / 1e12, "memory, GB": known.memory_bytes / 1e9,
                        "USD an hour": known.usd_per_hour, **facts, "source of the peak": known.source}
    return pd.DataFrame.from_dict(rows, orient="index")
