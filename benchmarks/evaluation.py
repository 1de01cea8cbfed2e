"""Evaluation beside the forward pass of a training step, and memory by the number of items of a task.

    python benchmarks/evaluation.py [--rounds 7]

`score` reads windows of random text; the training step's forward pass is the compiled loss, with what its backward
pass would need.  The two take turns.  Each number of items is scored in a process of its own, whose peak is taken.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from tinylib import tasks
from tinylib.config import PRESETS, GPTConfig
from tinylib.evaluate import score
from tinylib.model import GPT
from tinylib.shards import Shards, build
from tinylib.tokenizer import Tokenizer

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
TEXT = "The quick brown fox jumps over the lazy dog; then it sleeps, and the dog wakes up and looks for the fox.\n"
SHAPES = {"micro": replace(PRESETS["micro"], seq_len=256), "goldilocks": replace(PRESETS["goldilocks"], seq_len=256)}


def rate(name: str, config: GPTConfig, shards: Shards, rounds: int) -> None:
    """Tokens per second of both, and the median of the ratios of each round."""
    rows, windows = 8, {"micro": 64, "goldilocks": 16}[name]
    batches = list(shards.in_order(config.seq_len, windows, batch_size=rows))
    training, model = GPT(config), GPT(config).eval()
    training.compile_for_training((rows, config.seq_len))

    def forward() -> None:
        for x_BT, y_BT in batches:
            training(x_BT, y_BT)

    contenders: dict[str, Callable[[], object]] = {
        "training step's forward": forward,
        "score": lambda: score(model, shards, max_tokens=windows * config.seq_len, batch_size=rows)}
    seconds: dict[str, list[float]] = {label: [] for label in contenders}
    for turn in range(rounds + 1):
        for label, run in contenders.items():
            began = time.perf_counter()
            run()
            if turn:    # the first compiles
                seconds[label].append(time.perf_counter() - began)
    tokens = windows * config.seq_len
    for label, times in seconds.items():
        print(f"{name:11} {label:24} {tokens / statistics.median(times):>9,.0f} tokens/s")
    ratio = statistics.median(one / other for one, other in zip(*seconds.values(), strict=True))
    print(f"{name:11} score is {ratio:.2f} times as fast")


def peak_mb(items: int, folder: Path) -> float:
    """Peak memory of this process after scoring so many multiple-choice items."""
    tokenizer, model = Tokenizer.load(folder), GPT(SHAPES["micro"]).eval()
    words = TEXT.split()
    made = [{"query": " ".join(words[number % 9:]), "choices": [words[number % 7], words[number % 11 + 3]], "gold": 0}
            for number in range(items)]
    tasks.evaluate(model, tokenizer, [tasks.Task("choices", "multiple_choice", made, 0.5, shots=3)])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", nargs=2, metavar=("ITEMS", "TOKENIZER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(f"{peak_mb(int(options.peak[0]), Path(options.peak[1])):.0f}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = Tokenizer.train([TEXT * 50], 300)
        tokenizer.save(folder / "tokenizer")
        shards = build({"train": [TEXT * 3_000]}, tokenizer, folder / "shards")
        for name, config in SHAPES.items():
            rate(name, config, shards, options.rounds)
        for items in (500, 5_000, 20_000):
            done = subprocess.run([sys.executable, __file__, "--peak", str(items), str(folder / "tokenizer")],
                                  capture_output=True, text=True, check=True)
            print(f"{items:>6,} items: peak {done.stdout.strip()} MB")


if __name__ == "__main__":
    main()
