"""Every exercise: its stub is not yet solved, its reference solution is, and plausible wrong answers are not."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tinylib import sizing
from tinylib.config import PRESETS, GPTConfig
from tinylib.course import check, exercises
from tinylib.evaluate import bootstrap
from tinylib.ngram import KneserNey

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def load(path: Path) -> ModuleType:
    """The module in a file that lies outside of any package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOLUTIONS: dict[str, Any] = load(NOTEBOOKS / "solutions.py").SOLUTIONS


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None, first: int = 1) -> Any:
    """Attention with a scale and a mask that may be wrong."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(first)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v


def studied(seeds: int = 4) -> pd.DataFrame:
    """Runs of two arms that nothing tells apart."""
    noise = np.random.default_rng(0).normal(size=2 * seeds)
    return pd.DataFrame({"arm": ["a"] * seeds + ["b"] * seeds, "seed": [*range(seeds)] * 2, "bits_per_byte": noise})


WRONG: dict[str, list[tuple[Any, str]]] = {
    "01.1": [(lambda depth, dim: 12 * depth * dim, "half of 12·L·D²"), (lambda depth, dim: 12_288, "solve for V")],
    "01.2": [(lambda config: config.depth, "still fits"), (lambda config: 2 * config.depth + 1, "more than"),
             (lambda config: 2.0 * config.depth, "whole number")],
    "01.3": [(lambda: PRESETS["goldilocks"], "fewer than 8"), (lambda: GPTConfig(16, 256, 49_152), "20 million"),
             (lambda: 20e6, "return a GPTConfig")],
    "01.4": [(lambda config: 6 * sizing.parameters(config).total + 4 * config.depth * config.dim * config.seq_len,
              "what does a look-up multiply?"),
             (lambda config: SOLUTIONS["01.4"](config) - 8 * config.depth * config.dim * config.seq_len,
              "times what PyTorch counts")],
    "01.5": [(lambda m, k, n: 2 * m * k * n / (m * k + k * n + m * n), "4 bytes"),
             (lambda m, k, n: 1.0, "of the result")],
    "02.1": [(lambda ids, pair, new: {pair: -1}, "subtract"),
             (lambda ids, pair, new: dict(SOLUTIONS["02.1"](ids, pair, new) - Counter()), "before and after")],
    "02.2": [(lambda tokenizer: "the", "both encode"), (lambda tokenizer: "of the", "not one word")],
    "02.3": [(lambda word, merges: list(word), "tiktoken encodes")],
    "02.4": [(lambda depth, dim, slope, offset, sizes: sizes[0], "divide what a token costs"),
             (lambda depth, dim, slope, offset, sizes: 1000, "none of the vocabularies")],
    "02.5": [(lambda training, test, size: 1.0, "UTF-8 bytes"),
             (lambda training, test, size: float(np.mean([SOLUTIONS["02.5"](training, [text], size) for text in test])),
              "divide once")],
    "03.1": [(lambda q, k, v: causal(q, k, v, first=9999), "sees every key"),
             (lambda q, k, v: causal(q, k, v, scale=1.0), "square root"),
             (lambda q, k, v: causal(q, k, v, first=0), "infinities or nans"),
             (lambda q, k, v: causal(q, k, v).transpose(1, 2), "shape"),
             (causal(*torch.ones(3, 1, 1, 1, 1)), "can't be checked"),
             (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), "PyTorch's own")],
    "03.2": [(lambda vocab, cap: math.log(vocab), "least loss"), (lambda vocab, cap: 0.0, "least loss"),
             (lambda vocab, cap: math.log1p((vocab - 1) * math.exp(-cap)), "need not stop at 0")],
    "03.3": [(lambda gradient: gradient / gradient.norm(), "singular values run"), (torch.sign, "singular values run"),
             (lambda gradient: torch.linalg.svd(gradient)[0], "became"),
             (lambda gradient: -SOLUTIONS["03.3"](gradient), "direction")],
    "04.1": [(lambda means, counts: sum(means) / len(means), "divide once"),
             (lambda means, counts: sum(means), "divide once")],
    "04.2": [(lambda total, batch, length, world: total // (batch * length * world), "no multiple"),
             (lambda total, batch, length, world: total // (batch * length), "product of the last three")],
    "04.3": [(lambda rank, world, step, batch: range(rank * batch, (rank + 1) * batch), "must take each of the rows"),
             (lambda rank, world, step, batch: range(batch), "must take each of the rows"),
             (lambda rank, world, step, batch: range(rank, rank + 1), "each rank takes")],
    "05.1": [(lambda ours, theirs, sizes: bootstrap(ours, sizes), "Drawn together"),
             (lambda ours, theirs, sizes: bootstrap(theirs - ours, sizes), "ours less theirs"),
             (lambda ours, theirs, sizes: (0.1, 0.1), "ends where it begins")],
    "05.2": [(lambda training, text, vocab: KneserNey(np.array(training), vocab, 3).bits(np.array(text)),
              "should cost"),
             (lambda training, text, vocab: np.multiply(math.log(2), SOLUTIONS["05.2"](training, text, vocab)), "log2"),
             (lambda training, text, vocab: [math.inf] * (len(text) - 1), "has a probability too"),
             (lambda training, text, vocab: [1.0] * len(text), "predictions")],
    "05.3": [(lambda chances, p: [chance if chance >= 1 - p else 0 for chance in chances], "must add up to 1"),
             (lambda chances, p: [chance / sum(chances) for chance in chances], "belongs to the set"),
             (lambda chances, p: [max(chances)], "0 for those")],
    "05.4": [(lambda project, stream: [v for _, _, v in map(project, stream)], "the output of token 1"),
             (lambda project, stream: [project(x)[2] for x in stream for _ in range(2)], "yield one for each"),
             (lambda project, stream: [project(x)[2] + project(x)[2] for x in stream], "call it once for each")],
    "05.5": [(lambda training, text, vocab, sizes: [KneserNey(training, vocab).bits(text).mean() for _ in sizes],
              "count the first tokens"), (lambda training, text, vocab, sizes: [1.0], "one number for each")],
    "06.1": [(lambda dim, logit: logit / dim ** 0.5, "add up to about D"), (lambda dim, logit: 0.02, "own logit")],
    "06.2": [(lambda config: config.vocab_size * config.dim, "4 bytes"),
             (lambda config: 4 * config.vocab_size * config.dim, "two more")],
    "06.3": [(lambda first, second: "second" if sum(first) > sum(second) else "first", "pair the seeds"),
             (lambda first, second: "neither", "pair the seeds")],
    "06.4": [(lambda wte, head: (wte + head) / 2, "that size says nothing"), (lambda wte, head: wte[:3], "became"),
             (lambda wte, head: (wte / wte.norm(dim=1, keepdim=True) * head.norm(dim=1, keepdim=True) + head) / 2,
              "norm 0")],
    "06.5": [(lambda: (studied(), "better"), "'not told apart', not 'better'"),
             (lambda: (studied(seeds=2), "not told apart"), "at least three"),
             (lambda: (studied().assign(bits_per_byte=1.0), "not told apart"), "all gave the same"),
             (lambda: (studied()[:4], "better"), "compare two arms"),
             (lambda: (studied().drop(columns="seed"), "better"), "no column seed")],
    "07.1": [(lambda ids, start, end: [token == start or value for token, value in
                                       zip(ids, SOLUTIONS["07.1"](ids, start, end), strict=True)], "in the prompt"),
             (lambda ids, start, end: [value and token != end for token, value in
                                       zip(ids, SOLUTIONS["07.1"](ids, start, end), strict=True)], "never ends"),
             (lambda ids, start, end: [True] * len(ids), "it is"), (lambda ids, start, end: [True], "need 8 values")],
    "07.2": [(lambda answer, reference: float(answer == reference), "twice the common words"),
             (lambda answer, reference: len(set(answer.split()) & set(reference.split())) / max(1, len(answer.split())),
              "lower case")],
    "07.3": [(lambda lengths, room: 0, "do not fit"), (lambda lengths, room: 1, "drop pairs"),
             (lambda lengths, room: len(lengths) - 1, "it is")],
    "07.4": [(lambda documents, seed: documents, "shuffle them"), (lambda documents, seed: documents[:3], "stay 40"),
             (lambda documents, seed: documents[::-1], "questions stay")],
}
"""Wrong answers of each exercise, with words of the hint they must get."""


def stub(exercise: str) -> tuple[str, Any]:
    """Name and value of what the exercise's cell hands to `check`, with its function defined and nothing else run."""
    [path] = NOTEBOOKS.glob(f"{exercise[:2]}_*.ipynb")
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
             if cell["cell_type"] == "code"]
    [cell] = [cell for cell in cells if f'check("{exercise}"' in cell]
    tree = ast.parse(cell)
    call = tree.body[-1].value
    assert isinstance(call, ast.Call), f"the last line of {exercise}'s cell is not the check"
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found: dict[str, Any] = {}
    # Annotations stay text, because the names in them come from other cells.
    exec(compile(ast.Module(functions, []), exercise, "exec", flags=annotations.compiler_flag), found)
    return call.args[1].id, found[call.args[1].id]


def test_every_exercise_has_a_solution_and_wrong_answers():
    assert set(SOLUTIONS) == set(exercises()) == set(WRONG), "add the missing ones, here and in notebooks/solutions.py"


@pytest.mark.parametrize("exercise", exercises())
def test_the_notebooks_stub_is_not_yet_solved(exercise: str):
    name, function = stub(exercise)
    assert name == SOLUTIONS[exercise].__name__
    verdict = check(exercise, function)
    assert not verdict.solved and verdict.message.startswith("not yet"), verdict
    assert check(exercise, None) == check(exercise, ...) == verdict


@pytest.mark.parametrize("exercise", exercises())
def test_the_reference_solution_is_solved(exercise: str):
    verdict = check(exercise, SOLUTIONS[exercise])
    assert verdict.solved, verdict


@pytest.mark.parametrize("exercise", exercises())
def test_wrong_answers_are_not_solved_and_get_their_hint(exercise: str):
    for answer, hint in WRONG[exercise]:
        verdict = check(exercise, answer)
        assert not verdict.solved and hint in verdict.message, verdict


@pytest.mark.parametrize("exercise", exercises())
def test_an_answer_that_raises_gets_its_own_line(exercise: str):
    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("once too often")

    first, line = check(exercise, broken).message.splitlines()
    assert first.endswith("ZeroDivisionError: once too often")
    assert line.split()[0] == f"{Path(__file__).name}," and line.endswith('raise ZeroDivisionError("once too often")')


def test_the_line_is_the_readers_also_where_a_library_raises():
    def own_assert(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        assert q.shape == (1,), "not what I thought"
        return q

    def no_such_dim(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.softmax(q, dim=9)

    assert check("03.1", no_such_dim).message.endswith("in no_such_dim: return F.softmax(q, dim=9)")
    assert "AssertionError: not what I thought" in check("03.1", own_assert).message
    cell: dict[str, Any] = {}
    exec(compile("def f(depth, dim):\n    return depth / 0", "/tmp/ipykernel_1/2.py", "exec"), cell)
    assert "\n  line 2, in f" in check("01.1", cell["f"]).message, "a cell has no file to name"


def test_a_stub_may_raise_too():
    def stub(*arguments: Any) -> Any:
        raise NotImplementedError

    assert check("01.1", stub) == check("01.1", None)


def test_an_unknown_exercise_is_an_error():
    with pytest.raises(KeyError, match=r"exercise='99\.9' is not known"):
        check("99.9", 0)
