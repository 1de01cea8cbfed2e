"""Verbs for a model on paper: size, search, plan."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from tinylib import sizing
from tinylib.cli import tables
from tinylib.cli.verbs import Flags, Result, verb
from tinylib.config import GPTConfig, preset_name

if TYPE_CHECKING:
    import pandas as pd


@verb()
def size(config: Flags[GPTConfig], batch_size: int = 1) -> Result:
    """Parameters, FLOPs and bytes of a model.

    Args:
        batch_size: sequences at once, for activations, logits and the KV cache, in float32
    """
    run = sizing.PUBLISHED.get(preset_name(config) or "")
    facts = {"config": config} | sizing.sheet(config, batch_size)
    shown = {name: value for name, value in facts.items() if not hasattr(config, name)}
    return Result(facts | {"published": run}, tables.facts(shown | {"published": run}))


@verb()
def search(total: float = 38e6, head_dim: int = 64, vocab_sizes: Sequence[int] = range(4096, 131_073, 4096),
           min_depth: int = 3, max_depth: int = 64, min_dim: int = 1, max_dim: int | None = None, tied: bool = False,
           tolerance: float = 0.02, blocks_percent: float | None = None, context: int = 2048) -> Result:
    """Shapes of a given size, the twelve best balanced of them; --json has every figure.

    Args:
        total: parameters
        vocab_sizes: vocabularies to try, one or more numbers
        max_dim: largest width; None takes what can fit
        tolerance: distance from total that is allowed, as a share
        blocks_percent: wanted share of the blocks; None takes a third, or half of a tied model
        context: tokens, for FLOPs and KV cache
    """
    found = sizing.search(total, head_dim, vocab_sizes, min_depth, max_depth, min_dim, max_dim, tied, tolerance,
                          blocks_percent, context)
    found, lowest = _predicted(found)
    best, front = found.head(12), int(found["pareto"].sum())
    shown = best.rename(columns={"vocab_size": "V", "decode_bytes": "decoding", "flops_per_token": "a token"})
    added = _predictions(best)
    table = shown.assign(**added).to_string(
        index=False, columns=["preset", "depth", "dim", "V", "total", "decoding", "a token", *added],
        formatters={"total": tables.quantity, "decoding": tables.size,
                    "a token": functools.partial(tables.quantity, unit="FLOP")})
    words = ["", *(sizing.describe(row, found) for _, row in best.iterrows())]
    rows = [f"{line}  {text}" for line, text in zip(table.splitlines(), words, strict=True)]
    return Result({"found": len(found), "pareto": front, "candidates": best.to_dict("records"),
                   "missed": sizing.missed(found).head(12).to_dict("records")},
                  "\n".join([*rows, "", f"{len(found)} shapes, {front} of them on the Pareto front", *lowest]))


def _predicted(found: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Candidates with the columns of `Law.predict`, and lines about the lowest; as they are where there are no records.

    All at the training FLOPs of the first.
    """
    from tinylib.experiments import law

    fitted, flops = law.fitted(), float(found["training_flops"].iloc[0])
    if fitted is None:
        return found, []
    found = found.join(fitted.predict(found, flops))
    least = found.loc[[found["predicted"].idxmin()]]
    level, step = (column[0] for column in _predictions(least).values())
    depth, dim, vocab_size = least.iloc[0][["depth", "dim", "vocab_size"]]
    return found, ["", f"Predicted at {flops:.3g} FLOPs by a law fitted to {fitted.runs} small runs; ± is 95%.",
                   f"Lowest of all: {depth} × {dim}, V {vocab_size:,}, {level} bits per byte, {step} to the first row."]


def _predictions(found: pd.DataFrame) -> dict[str, list[str]]:
    """The columns of `Law.predict` as two of text, or none."""
    pairs = {"bits per byte": ("predicted", "half", ".3f"), "to the first": ("difference", "difference_half", "+.3f")}
    return {title: [f"{one:{form}} ± {half:.3f}" for one, half in zip(found[value], found[width], strict=True)]
            for title, (value, width, form) in pairs.items() if value in found}


@verb()
def plan(made: Annotated[sizing.Plan, tyro.conf.arg(name="", constructor=sizing.plan)]) -> Result:
    """Plan of a training run: tokens, steps, memory, time and cost, here and on other hardware."""
    elsewhere = sizing.plans(made.config, nproc_per_node=made.nproc_per_node, nnodes=made.nnodes, tokens=made.tokens,
                             total_batch_size=made.total_batch_size, mfu=made.utilisation)
    command, run = train_command(made), sizing.PUBLISHED.get(preset_name(made.config) or "")
    rows = {"config": made.config, **made.table(), "capability": sizing.tier(made.flops), "published": run}
    text = "\n".join([tables.facts(rows), "", command, "", _hardware(elsewhere)])
    return Result(made.figures() | {"command": command, "elsewhere": elsewhere.to_dict("index")}, text)


def _hardware(elsewhere: pd.DataFrame) -> str:
    """Devices as rows: what each is, and the plan on it."""
    columns = {"peak, TFLOP/s": ("TFLOP/s", "{:,.0f}".format), "memory, GB": ("memory", "{:.0f} GB".format),
               "USD an hour": ("an hour", "${:.2f}".format), "micro-batch": ("micro-batch", str),
               "accumulation": ("accumulation", "{:.0f}".format), "MFU, %": ("MFU", "{:.1f}%".format),
               "step, s": ("step", tables.duration), "hours": ("training", lambda hours: tables.duration(3600 * hours)),
               "USD": ("cost", "${:,.2f}".format)}
    return elsewhere.astype(object).to_string(
        columns=list(columns), header=[heading for heading, _ in columns.values()], na_rep="",
        formatters={column: form for column, (_, form) in columns.items()})


def train_command(plan: sizing.Plan) -> str:
    """The command that carries out a plan, on each of its machines.

    >>> from tinylib.config import PRESETS
    >>> train_command(sizing.plan(PRESETS["mini"], total_batch_size=65_536)).split(" -m ")
    ['torchrun --standalone --nproc-per-node=1', 'tinylib train --model mini --steps 2880 --total-batch-size 65536 \
--device-batch-size 32']
    """
    name = preset_name(plan.config)
    changed = {field.name: getattr(plan.config, field.name) for field in dataclasses.fields(GPTConfig)
               if getattr(plan.config, field.name) != field.default}
    flags = {"model": name} if name else changed
    flags |= {"steps": plan.steps, "total_batch_size": plan.total_batch_size,
              "device_batch_size": plan.device_batch_size} | ({"recompute": True} if plan.recompute else {})
    nodes = "--standalone" if plan.nnodes == 1 else (
        f"--nnodes={plan.nnodes} --rdzv-backend=c10d --rdzv-id=tinylib --rdzv-endpoint=HOST:29400")
    words = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in flags.items()]
    return f"torchrun {nodes} --nproc-per-node={plan.nproc_per_node} -m tinylib train " + " ".join(words)
