"""Scoring of benchmark questions: batches of similar length, the common prefix of an item's choices computed once.

Letters in shapes: Q questions, R rows (choices of all questions), P prefix, S rest, D dim, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylib.generate import check_tokenizer
from tinylib.model import GPT, KVCache
from tinylib.tasks.questions import Question, Task, TooLong, common_prefix
from tinylib.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

BATCH_TOKENS = 16_384
"""Tokens of a batch, prefixes and rests together."""


def evaluate(model: GPT, tokenizer: Tokenizer, tasks: Iterable[Task]) -> pd.DataFrame:
    """Accuracy of `model` on each task: a row a task.

    Columns: `kind`, `shots`, `items`, `accuracy`, `low` and `high` (Wilson's 95% interval), `chance`, `centered`,
    which is (accuracy - chance) / (1 - chance), and `seconds`.  `attrs["items"]` has whether each item was right, by
    task (None: it does not fit the context, and is not counted), and `attrs["skipped"]` what was left out and why.
    """
    import pandas as pd
    from scipy.stats import binomtest

    check_tokenizer(model, tokenizer)
    rows, items, skipped = {}, {}, {}
    for task in tasks:
        if len(task.items) <= task.shots:
            skipped[task.name] = f"{len(task.items)} items, and a prompt has {task.shots} of the others"
            continue
        began_s = time.perf_counter()
        items[task.name] = score_task(model, tokenizer, task)
        right = [answer for answer in items[task.name] if answer is not None]
        if len(right) < len(task.items):
            skipped[task.name] = f"{len(task.items) - len(right)} of {len(task.items)} items do not fit the context"
        if not right:
            continue
        accuracy, interval = sum(right) / len(right), binomtest(sum(right), len(right)).proportion_ci(method="wilson")
        rows[task.name] = {
            "kind": task.kind, "shots": task.shots, "items": len(right), "accuracy": accuracy, "low": interval.low,
            "high": interval.high, "chance": task.chance,
            "centered": (accuracy - task.chance) / (1 - task.chance), "seconds": time.perf_counter() - began_s}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.attrs = {"items": items, "skipped": skipped}
    return table


def compare(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of `one` less that of `other`, two tables of `evaluate`, paired by item: a row a task that both have.

    Columns: `difference`, `low` and `high` of its 95% interval over items, and `better`: "one" or "other" where the
    interval excludes 0, else "".  Raises ValueError where a task has other items in the two.
    """
    import pandas as pd

    rows = {}
    for task in one.index.intersection(other.index):
        pairs = [pair for pair in zip(one.attrs["items"][task], other.attrs["items"][task], strict=True)
                 if None not in pair]
        difference = pd.Series([float(right) - float(theirs) for right, theirs in pairs])
        mean, half = float(difference.mean()), 1.96 * float(difference.std(ddof=1)) / math.sqrt(len(pairs))
        rows[task] = {"difference": mean, "low": mean - half, "high": mean + half,
                      "better": "one" if mean > half else "other" if -mean > half else ""}
    return pd.DataFrame.from_dict(rows, orient="index")


def mean_centered(table: pd.DataFrame) -> tuple[float, float, float]:
    """The mean of `centered` over tasks, which is the CORE metric, and its 95% interval over items."""
    share, scale = table["accuracy"], 1 - table["chance"]
    half = 1.96 * math.sqrt((share * (1 - share) / table["items"] / scale**2).sum()) / len(table)
    mean = float(table["centered"].mean())
    return mean, mean - half, mean + half


def score_task(model: GPT, tokenizer: Tokenizer, task: Task) -> list[bool | None]:
    """Whether `model` answers each item of `task` rightly, None for one that does not fit its context.

    Questions are tokenized some thousand at a time.
    """
    right: list[bool | None] = []
    for start in range(0, len(task.items), 1_024):
        questions: dict[int, Question] = {}
        numbers = range(start, min(start + 1_024, len(task.items)))
        for number in numbers:
            with suppress(TooLong):
                questions[number] = task.question(number, tokenizer, model.config.seq_len)
        found = dict(zip(questions, answers(model, list(questions.values())), strict=True))
        right += map(found.get, numbers)
    return right


@torch.no_grad()
def answers(model: GPT, questions: Sequence[Question]) -> list[bool]:
    """Whether `model` answers each question rightly: by the choice with the least loss, or by greedy decoding."""
    shared = [min(common_prefix(question.sequences), *(start - 1 for start in question.starts))
              for question in questions]
    right = [False] * len(questions)
    for batch in _batches(questions, shared):
        prefix = min(shared[number] for number in batch)
        losses, greedy = _forward(model, [questions[number] for number in batch], prefix)
        for number in batch:
            question, count = questions[number], len(questions[number].sequences)
            own, losses = losses[:count], losses[count:]
            hits, greedy = greedy[:count], greedy[count:]
            scores = [float(some.sum() if question.total else some.mean()) for some in own]
            right[number] = bool(hits[0].all()) if question.gold is None else scores.index(min(scores)) == question.gold
    return right


def _batches(questions: Sequence[Question], shared: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of questions in batches: of similar prefix and length, the longest first, at most BATCH_TOKENS each."""
    def rest(number: int) -> int:
        return max(map(len, questions[number].sequences)) - shared[number]

    batch: list[int] = []
    for number in sorted(range(len(questions)), key=lambda number: (shared[number], rest(number)), reverse=True):
        some = [*batch, number]
        prefix, rows = shared[number], sum(len(questions[other].sequences) for other in some)    # the shortest so far
        longest = max(shared[other] + rest(other) for other in some) - prefix
        if batch and (len(some) * prefix + rows * longest > BATCH_TOKENS or 8 * prefix < 7 * shared[batch[0]] - 64):
            yield batch
            some = [number]
        batch = some
    if batch:
        yield batch


def _forward(model: GPT, questions: Sequence[Question], prefix: int) -> tuple[list[Tensor], list[Tensor]]:
    """Of each choice of each question: the losses of its scored tokens, and whether each of them is the likeliest."""
    rows = [(owner, ids, start) for owner, question in enumerate(questions)
            for ids, start in zip(question.sequences, question.starts, strict=True)]
    rest = max(len(ids) for _, ids, _ in rows) - prefix
    cache = None
    if prefix:
        first = KVCache(model, len(questions), prefix)
        model.hidden(_padded(model, [question.sequences[0][:prefix] for question in questions], prefix), first)
        cache = first.select([owner for owner, _, _ in rows], prefix + rest)
    hidden_RSD = model.hidden(_padded(model, [ids[prefix:] for _, ids, _ in rows], rest), cache)
    scored = [(row, place - 1 - prefix, ids[place]) for row, (_, ids, start) in enumerate(rows)
              for place in range(start, len(ids))]
    row, place, target = torch.tensor(scored, device=model.device).T
    losses, hits = [], []
    for at, wanted in zip((hidden_RSD[row, place]).split(512), target.split(512), strict=True):
        logits = model.logits(at)
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        hits.append(logits.argmax(-1) == wanted)
    sizes = [len(ids) - start for _, ids, start in rows]
    return list(torch.cat(losses).cpu().split(sizes)), list(torch.cat(hits).cpu().split(sizes))


def _padded(model: GPT, ids: Sequence[Sequence[int]], length: int) -> Tensor:
    """Ids in rows of `length`, filled up on the right, where nothing that is scored can see it."""
    padded = torch.zeros((len(ids), length), dtype=torch.long)
    for row, some in enumerate(ids):
        padded[row, :len(some)] = torch.tensor(some)
    return padded.to(model.device)
