"""BLiMP and CORE of a checkpoint, and of an untrained model of its shape as a control: `data/records/tasks.json`.

    python benchmarks/tasks.py CHECKPOINT --pairs BLIMP --core EVAL_BUNDLE [--items 300]

Notebook 05 draws the file.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import pandas as pd
import torch

from tinylib import tasks
from tinylib.checkpoint import TOKENIZER, load_model, read_train_state
from tinylib.hardware import processor
from tinylib.model import GPT
from tinylib.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


def entry(table: pd.DataFrame) -> dict[str, object]:
    """A table of `tasks.evaluate` as plain values."""
    centered, low, high = tasks.mean_centered(table)
    return {"centered": centered, "low": low, "high": high, "skipped": table.attrs["skipped"],
            "tasks": table.drop(columns="seconds").round(4).reset_index(names="task").to_dict("records")}


def main() -> None:
    """Score both models and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--core", type=Path, required=True)
    parser.add_argument("--items", type=int, default=300, help="items of each task, at most")
    options = parser.parse_args()
    model, tokenizer = load_model(options.checkpoint), Tokenizer.load(options.checkpoint / TOKENIZER)
    state, began_s = read_train_state(options.checkpoint), time.perf_counter()
    command = f"python benchmarks/tasks.py CHECKPOINT --pairs BLIMP --core EVAL_BUNDLE --items {options.items}"
    found: dict[str, object] = {
        "note": f"A run of notebook 04, step {state['step']}; up to {options.items} items a task; {processor()}, "
                f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}\n{command}",
        "date": time.strftime("%Y-%m-%d"), "hardware": processor(), "torch": torch.__version__,
        "python": platform.python_version(), "command": command, "model": state["train"]["model"],
        "step": state["step"]}
    for name, scored in (("trained", model), ("untrained", GPT(model.config).eval())):
        found[name] = {"pairs": entry(tasks.evaluate(scored, tokenizer, tasks.minimal_pairs(options.pairs,
                                                                                           options.items))),
                       "core": entry(tasks.evaluate(scored, tokenizer, tasks.core(options.core, options.items)))}
    found["seconds"] = round(time.perf_counter() - began_s)
    (ROOT / "data" / "records" / "tasks.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
