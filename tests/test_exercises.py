"""Every exercise: its stub is not yet solved, its reference solution is, and plausible wrong answers are not."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable
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
from tinylib.model import GPT
from tinylib.ngram import KneserNey

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def load(path: Path) -> ModuleType:
    """The module in a file that lies outside of any package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOLUTIONS: dict[str, Any] = load(NOTEBOOKS / "solutions.py").SOLUTIONS


def leaks_from_the_end(forward: Callable[[torch.Tensor], torch.Tensor], x_BT: torch.Tensor, vocab_size: int) -> bool:
    """Whether the last token changes logits before it; it says nothing of the others."""
    changed_BT = x_BT.clone()
    changed_BT[:, -1] = (changed_BT[:, -1] + 1) % vocab_size
    return bool(((forward(changed_BT) - forward(x_BT))[:, :-1].abs() > 1e-5).any())


def studied(seeds: int = 4) -> pd.DataFrame:
    """Runs of two arms that nothing tells apart."""
    noise = np.random.default_rng(0).normal(size=2 * seeds)
    return pd.DataFrame({"arm": ["a"] * seeds + ["b"] * seeds, "seed": [*range(seeds)] * 2, "bits_per_byte": noise})


def accumulate(model: GPT, x: torch.Tensor, y: torch.Tensor, micro: int, reduction: str = "sum",
               keep: bool = False) -> float:
    """Accumulation that may take means of means, or keep the gradient of the batch before."""
    if not keep:
        model.zero_grad()
    count = int((y >= 0).sum()) if reduction == "sum" else -(-len(x) // micro)
    losses = [model(x[row:row + micro], y[row:row + micro], reduction=reduction) / count
              for row in range(0, len(x), micro)]
    sum(losses).backward()
    return sum(losses).item()


def per_rank(gradients: list[torch.Tensor], targets: list[int], clip: float, times: int = 1) -> torch.Tensor:
    """The planted bug: each rank divides and clips by itself."""
    means = [gradient / count for gradient, count in zip(gradients, targets, strict=True)]
    return times * sum(mean * min(1.0, clip / float(mean.norm())) for mean in means) / len(means)


WRONG: dict[str, list[tuple[Any, str]]] = {
    "01.1": [(lambda depth, dim: 12 * depth * dim, "half of 12·L·D²"), (lambda depth, dim: 12_288, "solve for V")],
    "01.2": [(lambda config: config.depth, "still fits"), (lambda config: 2 * config.depth + 1, "more than"),
             (lambda config: 2.0 * config.depth, "whole number")],
    "01.3": [(lambda: PRESETS["goldilocks"], "fewer than 8"), (lambda: GPTConfig(16, 256, 49_152), "20 million"),
             (lambda: 20e6, "return a GPTConfig")],
    "01.4": [(sizing.flops_per_token, "products of a frozen head"),
             (lambda config: SOLUTIONS["01.4"](config) - 2 * config.vocab_size * config.dim, "a frozen head"),
             (lambda config: SOLUTIONS["01.4"](config) - 8 * config.depth * config.dim * config.seq_len,
              "backward pass of attention"),
             (lambda config: SOLUTIONS["01.4"](config) - 12 * config.depth * config.dim * config.seq_len,
              "backward pass of attention"),
             (lambda config: SOLUTIONS["01.4"](config) - 24 * config.depth * config.dim**2,
              "a weight that is trained")],
    "01.5": [(lambda width, balance: math.ceil(2 * balance), "4 bytes"),
             (lambda width, balance: 100_000 if balance < width / 4 else math.inf, "are enough, but so are"),
             (lambda width, balance: max(1, math.ceil(2 * balance * width / (width - 4 * balance))), "not enough"),
             (lambda width, balance: 2 * balance * width / (width - 4 * balance), "whole number"),
             (lambda width, balance: math.inf, "some number of rows")],
    "02.1": [(lambda ids, pair, new: {pair: -1}, "subtract"),
             (lambda ids, pair, new: dict(SOLUTIONS["02.1"](ids, pair, new) - Counter()), "before and after")],
    "02.2": [(lambda tokenizer: "the", "both encode"), (lambda tokenizer: "of the", "not one word")],
    "02.3": [(lambda word, merges: list(word), "tiktoken encodes")],
    "02.4": [(lambda depth, dim, slope, offset, sizes: sizes[0], "divide what a token costs"),
             (lambda depth, dim, slope, offset, sizes: SOLUTIONS["02.4"](depth, dim / 2, slope, offset, sizes),
              "the look-up costs nothing"),
             (lambda depth, dim, slope, offset, sizes: SOLUTIONS["02.4"](depth, dim, slope / math.log(2), offset,
                                                                         sizes),
              "natural logarithm"),
             (lambda depth, dim, slope, offset, sizes: 1000, "none of the vocabularies")],
    "02.5": [(lambda training, test, size: 1.0, "UTF-8 bytes"),
             (lambda training, test, size: float(np.mean([SOLUTIONS["02.5"](training, [text], size) for text in test])),
              "divide once")],
    "03.1": [(lambda raw, y, cap: SOLUTIONS["03.1"](raw, y, cap) / (1 - torch.tanh(raw / cap) ** 2), "slope of the"),
             (lambda raw, y, cap: SOLUTIONS["03.1"](raw, y, 1e6), "off from autograd's"),
             (lambda raw, y, cap: len(y) * SOLUTIONS["03.1"](raw, y, cap), "divides by R"),
             (lambda raw, y, cap: -SOLUTIONS["03.1"](raw, y, cap), "uphill"),
             (lambda raw, y, cap: raw[y], "became"), (torch.ones(2, 2), "can't be checked")],
    "03.2": [(lambda vocab, cap: math.log(vocab), "least loss"), (lambda vocab, cap: 0.0, "least loss"),
             (lambda vocab, cap: math.log1p((vocab - 1) * math.exp(-cap)), "need not stop at 0")],
    "03.3": [(lambda gradient: gradient / gradient.norm(), "singular values run"), (torch.sign, "singular values run"),
             (lambda gradient: torch.linalg.svd(gradient)[0], "became"),
             (lambda gradient: -SOLUTIONS["03.3"](gradient), "direction")],
    "03.4": [(lambda forward, x_BT, vocab: False, "was not found"),
             (lambda forward, x_BT, vocab: True, "causal model was"), (leaks_from_the_end, "hole in the middle")],
    "03.5": [(lambda: (studied(), "better"), "'not told apart', not 'better'")],
    "04.1": [(lambda compute_s, size, link: 1, "still takes at least"),
             (lambda compute_s, size, link: 3 + int(compute_s * link / size), "takes longer than computing"),
             (lambda compute_s, size, link: 1 + compute_s * link / 2 / size, "whole number"),
             (lambda compute_s, size, link: int(compute_s * link / 2 / size), "with 26 devices"),
             (lambda compute_s, size, link: 0, "nobody to talk to")],
    "04.2": [(lambda model, x, y, micro: accumulate(model, x, y, len(x)), "rows went through the model at once"),
             (lambda model, x, y, micro: accumulate(model, x[:micro], y[:micro], micro), "went through the model"),
             (lambda model, x, y, micro: accumulate(model, x, y, micro, "mean"), "what does a target weigh"),
             (lambda model, x, y, micro: accumulate(model, x, y, micro, keep=True), "still in it"),
             (lambda model, x, y, micro: 2 * SOLUTIONS["04.2"](model, x, y, micro), "the gradient is right")],
    "04.3": [(lambda tensors, send: [sum(tensors)] * len(tensors), "nothing was sent"),
             (lambda tensors, send: [one + send(1 - rank, rank, tensors[1 - rank]) for rank, one
                                     in enumerate(tensors[:2])], "have a result each"),
             (lambda tensors, send: [tensor + send((rank - 1) % len(tensors), rank, tensors[rank - 1])
                                     for rank, tensor in enumerate(tensors)], "had before the round"),
             (lambda tensors, send: [sum(send(other, rank, tensor) for other, tensor in enumerate(tensors)
                                         if other != rank) + tensors[rank] for rank in range(len(tensors))],
              "rounds are enough"), (lambda tensors, send: [send(0, 0, tensors[0])], "sends to itself")],
    "04.4": [(lambda gradients, targets, clip: per_rank(gradients, targets, clip), "of unequal targets"),
             (lambda gradients, targets, clip: sum(gradients) / sum(targets), "one rank: "),
             (lambda gradients, targets, clip: per_rank(gradients, [sum(targets)] * len(targets), clip, len(targets)),
              "one is longer than the clip"),
             (lambda gradients, targets, clip: clip * sum(gradients) / sum(gradients).norm(), "one rank, nothing")],
    "04.5": [(lambda losses, batch, level: next((step * batch for step, loss in enumerate(losses, 1) if loss <= level),
                                                math.inf), "mean of the last five"),
             (lambda losses, batch, level: SOLUTIONS["04.5"](losses, 1, level), "tokens a step")],
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
