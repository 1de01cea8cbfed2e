"""CORE and minimal pairs: answers and seconds of `tinylib.tasks` beside one sequence at a time, and nanochat's own.

    python benchmarks/core.py CHECKPOINT EVAL_BUNDLE [--items 100] [--seq-len 2048] [--nanochat nanochat/core_eval.py]

Each task is scored three ways in turn, with one thread unless OMP_NUM_THREADS says otherwise: by `tasks.answers`; by a
whole forward pass of each choice alone, all its logits; and, where a file of nanochat's is given, by its
`evaluate_example`, an item's choices as a padded batch.  Answers are counted where they are equal, item by item.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylib import tasks
from tinylib.checkpoint import TOKENIZER, load_model
from tinylib.model import GPT
from tinylib.tasks.scoring import score_task
from tinylib.tokenizer import Tokenizer

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@torch.no_grad()
def one_by_one(model: GPT, tokenizer: Tokenizer, task: tasks.Task) -> list[bool]:
    """The answers by a forward pass of each choice."""
    right = []
    for number in range(len(task.items)):
        question, scores = task.question(number, tokenizer, model.config.seq_len), []
        for ids, start in zip(question.sequences, question.starts, strict=True):
            logits, target = model(torch.tensor([ids]))[0, start - 1:-1], torch.tensor(ids[start:])
            if question.gold is None:
                right.append(bool((logits.argmax(-1) == target).all()))
            scores.append(float(F.cross_entropy(logits, target)))
        if question.gold is not None:
            right.append(scores.index(min(scores)) == question.gold)
    return right


class Theirs:
    """nanochat's `evaluate_example` on our model and tokenizer."""

    def __init__(self, file: Path, model: GPT, tokenizer: Tokenizer) -> None:
        spec = importlib.util.spec_from_file_location("core_eval", file)
        assert spec is not None and spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.model, self.tokenizer, self.max_seq_len = model, tokenizer, model.config.seq_len

    def __call__(self, prompts: Any, prepend: int | None = None) -> Any:
        """Logits of ids, where a model is called, or ids of prompts, where a tokenizer is."""
        if isinstance(prompts, Tensor):
            return self.model(prompts)
        return [[prepend, *self.tokenizer.encode(prompt)] for prompt in prompts]

    def get_bos_token_id(self) -> int:
        """As its tokenizer has it."""
        return self.tokenizer.bos

    def score(self, task: tasks.Task) -> list[bool]:
        """The answers."""
        meta = {"task_type": task.kind, "num_fewshot": task.shots, "continuation_delimiter": task.delimiter}
        return [bool(self.module.evaluate_example(number, self, self, task.items, "cpu", meta))
                for number in range(len(task.items))]


def timed(score: Callable[[], list[bool]]) -> tuple[list[bool], float]:
    """The answers and their seconds."""
    began_s = time.perf_counter()
    return score(), time.perf_counter() - began_s


def main() -> None:
    """Print a row a task, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--nanochat", type=Path)
    options = parser.parse_args()
    model, tokenizer = load_model(options.checkpoint), Tokenizer.load(options.checkpoint / TOKENIZER)
    model.config = replace(model.config, seq_len=options.seq_len)
    theirs = Theirs(options.nanochat, model, tokenizer) if options.nanochat else None
    sums = [0.0, 0.0, 0.0]
    print("| task | items | right | equal to one by one, to nanochat | seconds: ours, one by one, nanochat | factor |")
    for task in tasks.core(options.bundle, options.items):
        ours, *others = [timed(lambda task=task: score_task(model, tokenizer, task)),
                         timed(lambda task=task: one_by_one(model, tokenizer, task)),
                         *([timed(lambda task=task: theirs.score(task))] if theirs else [])]
        equal = [sum(one == other for one, other in zip(ours[0], answers, strict=True)) for answers, _ in others]
        seconds = [ours[1], *(taken for _, taken in others)]
        sums = [total + taken for total, taken in zip(sums, [*seconds, 0.0], strict=False)]
        print(f"| {task.name} | {len(task.items)} | {sum(ours[0])} | {', '.join(map(str, equal))} | "
              f"{', '.join(f'{taken:.2f}' for taken in seconds)} | {seconds[1] / seconds[0]:.1f} |", flush=True)
    print(f"| all | | | | {', '.join(f'{total:.1f}' for total in sums if total)} | {sums[1] / sums[0]:.1f} |")


if __name__ == "__main__":
    main()
