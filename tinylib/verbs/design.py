"""Verbs of a model on paper: size, search, plan."""

from __future__ import annotations

from tinylib.config import PRESETS, GPTConfig
from tinylib.flags import parse, train_command, with_model
from tinylib.verbs import Result, show


def size(arguments: list[str]) -> Result:
    """parameters, FLOPs and bytes of a model"""
    return with_model(_size, arguments)


def _size(config: GPTConfig, batch_size: int = 1) -> Result:
    """Parameters, FLOPs and bytes of a model; activations and logits of BATCH_SIZE sequences, in float32."""
    from tinylib import sizing

    facts = sizing.sheet(config, batch_size)
    shares = {f"{part}_percent": round(percent, 2) for part, percent in sizing.parameters(config).split.items()}
    names = [name for name, preset in PRESETS.items() if preset == config]
    run = {name: vars(sizing.PUBLISHED[name]) for name in names if name in sizing.PUBLISHED}
    show({**{name: f"{value:,}" for name, value in facts.items()}, **shares,
           **{f"published {name}": value for facts in run.values() for name, value in facts.items()}})
    return {**facts, **shares, "published": run, "config": config}


def search(arguments: list[str]) -> Result:
    """shapes of a given size, the best balanced first"""
    from tinylib import sizing

    found = parse(sizing.search, arguments)
    best, short = found.head(12).set_axis(range(1, min(12, len(found)) + 1)), sizing.findings(found)
    show(best[["preset", "depth", "dim", "vocab_size", "total", "blocks_percent", "off_percent", "per_layer",
                "flops_per_token", "decode_bytes", "pareto"]].round(2))
    print("", *(f"{rank:>2}  {text}" for rank, text in best["trades"].items()), "", *short, sep="\n")
    return {"found": len(found), "pareto": int(found["pareto"].sum()), "findings": short,
            "candidates": best.to_dict("records"), "missed": sizing.missed(found).head(12).to_dict("records")}


def plan(arguments: list[str]) -> Result:
    """what training a model takes: tokens, steps, memory, time and cost, here and on other hardware"""
    from tinylib import sizing

    made = with_model(sizing.plan, arguments)
    elsewhere = sizing.plans(made.config, nproc_per_node=made.nproc_per_node, nnodes=made.nnodes, tokens=made.tokens,
                             total_batch_size=made.total_batch_size, mfu=made.utilisation)
    reported = {f"published: {run.holds}": f"{run.hours} h and ${run.usd}; planned here: {made.train_s / 3600:.1f} h"
                for name, run in sizing.PUBLISHED.items() if PRESETS[name] == made.config}
    command = train_command(made)
    show(made.table().to_dict() | {"capability": sizing.tier(made.flops)} | reported)
    print(f"\n{command}\n")
    show(elsewhere.drop(columns="source of the peak").map(
        lambda value: "" if value != value else f"{value:.3g}" if isinstance(value, float) else value))
    return made.figures() | {"command": command, "elsewhere": elsewhere.to_dict("index")}
