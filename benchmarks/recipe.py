"""Validation bits per byte after the same time on the same text: recipes against each other, over several seeds.

    python benchmarks/recipe.py [--data SHARDS] [--model micro] [--seconds 60 | --tokens 2e6] [--recipes ours plain]
    python benchmarks/recipe.py [--data SHARDS] --tying [--model nano] [--steps 250]

Each recipe first trains for some steps, untimed, to be compiled and to show its rate; that rate says how many steps fit
the time, and its schedule ends there.  With `--tokens` all read as many, which is the same time where their rates are
the same, also on a busy machine.  Recipes take turns seed by seed.  Differences to the first recipe are paired by
seed; their 95% interval is Student's.  `--tying` sweeps what one table for two jobs must choose: the std of its first
values, its learning rate, the precision of its products.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tinylib import profiles
from tinylib.config import PRESETS, TrainConfig
from tinylib.evaluate import t_interval
from tinylib.model import GPT
from tinylib.rundir import RunDirectory
from tinylib.shards import Shards
from tinylib.train import train

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"unembedding_lr": 0.004, "warmdown_fraction": 0.2},
    "twice the batch": {"total_batch_size": 8192},
    "adamw": {"matrix_optimizer": "adamw", "matrix_lr": 0.008},
}
"""Changes to the library's own recipe, "ours".  Plain is nanochat's of October 2025; AdamW's rate is the best of 0.002,
0.004 and 0.008."""


def run(config: TrainConfig) -> tuple[float, float]:
    """Bits per byte and the median seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        summary = train(replace(config, run_dir=f"{folder}/run"))
        return float(summary.val_bpb or 0), float(RunDirectory(f"{folder}/run").metrics()["dt_s"].median())


def compare(base: TrainConfig, changes: dict[str, dict[str, Any]], seconds: float, tokens: float | None,
            seeds: int) -> pd.DataFrame:
    """A row for each recipe and seed; each reads `tokens`, None takes as many as fit `seconds`."""
    rows, fits = [], {}
    for name, change in changes.items():
        short = replace(base, **change, steps=20, eval_tokens=base.model.seq_len)
        fits[name] = round(tokens / short.total_batch_size if tokens else seconds / run(short)[1])
    for seed in range(seeds):
        for name, change in changes.items():
            config = replace(base, **change, steps=fits[name], seed=seed)
            bpb, step_s = run(config)
            rows.append({"recipe": name, "seed": seed, "steps": config.steps, "bits_per_byte": bpb,
                         "seconds": step_s * config.steps, "tokens": config.steps * config.total_batch_size})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def report(table: pd.DataFrame) -> dict[str, Any]:
    """Means, and the interval of the paired differences to the first recipe."""
    scores = table.pivot(index="seed", columns="recipe", values="bits_per_byte")[table["recipe"].unique()]
    first = scores.columns[0]
    found = {}
    for name in scores:
        difference = scores[name] - scores[first]
        found[name] = {"mean": scores[name].mean(), "seeds": scores[name].tolist(),
                       "steps": int(table[table["recipe"] == name]["steps"].iloc[0]),
                       "against_first": None if name == first or len(scores) < 2 else t_interval(difference.tolist())}
        print(f"{name:<16}{scores[name].mean():8.4f}  {found[name]['against_first'] or ''}")
    return found


@contextmanager
def tables_drawn_with(std: float | None) -> Iterator[None]:
    """While this lasts a tied table starts with `std` (None: the model's own)."""
    own: Callable[..., float] = GPT._initial_std
    if std is not None:
        GPT._initial_std = lambda model, name, weight: std if name == "wte.weight" else own(model, name, weight)
    try:
        yield
    finally:
        GPT._initial_std = own


def tying(base: TrainConfig) -> pd.DataFrame:
    """Bits per byte of a tied model for each std, learning rate and precision."""
    tied, rows = replace(base, model=replace(base.model, tied=True)), []
    dim = base.model.dim
    for dtype in ("float32", "bfloat16"):
        for std in (0.5 / dim, 0.02, dim**-0.5, 1.0):
            for rate in (0.001, 0.004, 0.016, 0.064):
                if dtype == "float32" or (std == 0.5 / dim):
                    with tables_drawn_with(std):
                        bpb, _ = run(replace(tied, tied_lr=rate, dtype=dtype))
                    rows.append({"dtype": dtype, "std": std, "tied_lr": rate, "bits_per_byte": bpb})
                    print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="token shards; those of the cpu profile by default")
    parser.add_argument("--model", default="micro", choices=PRESETS)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4096, help="tokens in a step")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250, help="of each run of --tying")
    parser.add_argument("--tokens", type=float, help="of each run, instead of --seconds")
    parser.add_argument("--recipes", nargs="+", default=["ours", *RECIPES])
    parser.add_argument("--tying", action="store_true")
    options = parser.parse_args()
    data = options.data or profiles.profile("cpu").shards
    vocab_size = Shards(data).tokenizer.vocab_size
    model = replace(PRESETS[options.model], seq_len=options.seq_len, vocab_size=vocab_size)
    base = replace(profiles.profile("cpu").train, model=model, data=str(data), total_batch_size=options.batch,
                   device_batch_size=min(16, options.batch // options.seq_len), eval_every=None, save_every=None,
                   eval_tokens=131_072)
    if options.tying:
        table = tying(replace(base, steps=options.steps))
        print(table.pivot(index=["dtype", "std"], columns="tied_lr", values="bits_per_byte").round(3).to_string())
        print(json.dumps(table.to_dict("records")))
        return
    changes = {name: RECIPES.get(name, {}) for name in options.recipes}
    print(json.dumps(report(compare(base, changes, options.seconds, options.tokens, options.seeds))))


if __name__ == "__main__":
    main()
