"""The checkers of the notebooks' exercises: `check("01.1", answer)` says solved, not yet, or what is off.

A checker takes the reader's answer, calls it if it is a function, and raises AssertionError with a hint where it is
off.  An answer of None, or a function that returns None, is a stub nobody has filled in yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_CHECKERS: dict[str, Callable[[Any], None]] = {}


@dataclass(frozen=True)
class Verdict:
    """What `check` found; a notebook shows its text."""

    exercise: str
    solved: bool
    message: str

    def __repr__(self) -> str:
        return f"{'☑' if self.solved else '☐'} {self.exercise} {self.message}"


class NotYet(Exception):
    """The stub is still a stub."""


def check(exercise: str, answer: Any) -> Verdict:
    """Judge `answer` to `exercise`; never raises for a wrong answer, so a notebook runs to its end.

    >>> check("01.1", None)
    ☐ 01.1 not yet: fill in the stub and run the cell again
    """
    if exercise not in _CHECKERS:
        raise KeyError(f"exercise={exercise!r} is not known: exercises are {', '.join(sorted(_CHECKERS))}")
    try:
        if answer is None or answer is ...:
            raise NotYet
        _CHECKERS[exercise](answer)
    except NotYet:
        return Verdict(exercise, False, "not yet: fill in the stub and run the cell again")
    except AssertionError as hint:
        return Verdict(exercise, False, f"not quite: {hint}")
    except Exception as error:  # the reader's own code failed: say so in one line
        return Verdict(exercise, False, f"your code raised {type(error).__name__}: {error}")
    return Verdict(exercise, True, "solved")


def exercises() -> tuple[str, ...]:
    """The names of all exercises."""
    return tuple(sorted(_CHECKERS))


def _checker(exercise: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        _CHECKERS[exercise] = function
        return function
    return register


def _given(value: Any) -> Any:
    """`value`, unless the stub returned nothing."""
    if value is None or value is ...:
        raise NotYet
    return value


# Notebook 01: architecture math


@_checker("01.1")
def _balanced_vocabulary(answer: Callable[[int, int], int]) -> None:
    from tinylib.sizing import balanced

    for depth, dim in ((4, 512), (16, 256), (3, 192)):
        found, right = _given(answer(depth, dim)), balanced(depth, dim).vocab_size
        assert found == right, (f"at depth {depth} and width {dim} a table of {found} rows is not as large as the "
                                "blocks: set V·D equal to 12·L·D² and solve for V")


@_checker("01.2")
def _tied_depth(answer: Callable[[Any], int]) -> None:
    from dataclasses import replace

    from tinylib.config import PRESETS, GPTConfig
    from tinylib.sizing import parameters

    for config in (PRESETS["goldilocks"], PRESETS["conventional"], GPTConfig(5, 128, 10_000)):
        depth, limit = _given(answer(config)), parameters(config).total
        assert isinstance(depth, int), f"layers are whole: return an int, not {depth!r}"
        grown = parameters(replace(config, depth=depth, tied=True)).total
        assert grown <= limit, f"{depth} layers tied hold {grown:,}, more than the {limit:,} there are to spend"
        assert parameters(replace(config, depth=depth + 1, tied=True)).total > limit, \
            f"with {depth} layers another one still fits: a layer costs 12·D², tying frees V·D"


@_checker("01.3")
def _design(answer: Callable[[], Any]) -> None:
    from tinylib.config import GPTConfig
    from tinylib.sizing import parameters

    config = _given(answer())
    assert isinstance(config, GPTConfig), f"return a GPTConfig, not {type(config).__name__}"
    count = parameters(config)
    assert not config.tied and config.head_dim == 64, "the design is untied and has heads of 64"
    assert config.depth >= 8, f"{config.depth} layers are fewer than 8"
    assert abs(count.total - 20e6) <= 0.01 * 20e6, f"{count.total:,} is not within 1 % of 20 million"
    assert abs(count.split["blocks"] - 100 / 3) <= 1, f"the blocks hold {count.split['blocks']:.1f} %, not 32.3 to 34.3"

# Notebook 02: tokenizer


@_checker("02.1")
def _most_common_pair(answer: Callable[[list[int]], tuple[int, int]]) -> None:
    from collections import Counter
    from itertools import pairwise

    for text in ("the cat sat on the mat", "aaab", "low lower lowest slow", "ab"):
        ids = list(text.encode())
        counts, found = Counter(pairwise(ids)), _given(answer(list(ids)))
        assert tuple(found) in counts, f"in {text!r} the pair {found!r} never stands side by side: return two ids"
        most = max(counts.values())
        assert counts[tuple(found)] == most, (f"in {text!r} your pair stands {counts[tuple(found)]} times, another one "
                                              f"{most} times")


@_checker("02.2")
def _merged(answer: Callable[[list[int], tuple[int, int], int], list[int]]) -> None:
    cases = [([1, 2, 3, 1, 2], (1, 2), 9, [9, 3, 9]), ([5, 5, 5], (5, 5), 9, [9, 5]), ([], (1, 2), 9, []),
             ([1, 1, 2], (1, 2), 9, [1, 9]), ([2, 1], (1, 2), 9, [2, 1]), ([1, 2, 2], (1, 2), 9, [9, 2])]
    for ids, pair, new, right in cases:
        given = list(ids)
        found = _given(answer(given, pair, new))
        assert list(found) == right, f"merging {pair} into {new} makes {right} of {ids}, not {list(found)}"
        assert given == ids, "the list that came in was changed: build a new one"


@_checker("02.3")
def _encode_word(answer: Callable[[bytes, list[tuple[int, int]]], list[int]]) -> None:
    from tinylib.tokenizer import Tokenizer

    text = "the lowest and the newest, the widest of the widest: low, lower, lowest; new, newer, newest; wide, wider"
    tokenizer = Tokenizer.train([text], vocab_size=290)
    for word in ("lowest", "widest", "the", "w", "newness", "thewidest", "été"):    # each one piece of the pattern
        right, found = tokenizer.encode(word), _given(answer(word.encode(), tokenizer.merges()))
        assert list(found) == right, f"tiktoken makes {right} of {word!r}, you make {list(found)}"


# Notebook 03: model


@_checker("03.1")
def _attention_by_hand(answer: Callable[[Any, Any, Any], Any]) -> None:
    from unittest.mock import patch

    import torch
    import torch.nn.functional as F

    from tinylib.model import attention

    generator, fused = torch.Generator().manual_seed(0), F.scaled_dot_product_attention
    for shape in ((2, 3, 7, 16), (1, 2, 33, 64), (1, 1, 1, 8)):
        q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
        with patch.object(F, "scaled_dot_product_attention", side_effect=AssertionError(
                "that is torch's own attention: use matrix products, a mask and softmax")):
            found = _given(answer(q.clone(), k.clone(), v.clone()))
        assert isinstance(found, torch.Tensor), f"return a tensor, not {type(found).__name__}"
        assert found.shape == v.shape, f"the answer has shape {tuple(found.shape)}, v has {tuple(v.shape)}"
        assert found.isfinite().all(), "there are infinities or nans in it: no row of the mask may be empty"
        if shape[2] > 1:
            assert not torch.allclose(found, fused(q, k, v), atol=1e-5), \
                "every query sees every key: hide the keys that stand after the query, before softmax"
            assert not torch.allclose(found, fused(q, k, v, is_causal=True, scale=1.0), atol=1e-5), \
                "the scores are not divided by the square root of the head dim"
        worst = float((found - attention(q, k, v, 0)).abs().max())
        assert worst <= 1e-5, f"for q, k and v of shape {shape} it is up to {worst:.1e} off, more than 1e-5"


@_checker("03.2")
def _least_loss(answer: Callable[[int, float], float]) -> None:
    import torch

    from tinylib.loss import softcap

    for vocab_size, cap in ((3072, 5.0), (24_576, 15.0), (3072, 2.0), (16, 0.5)):
        logits = torch.full((vocab_size,), -1e9, dtype=torch.float64)
        logits[0] = 1e9
        right, found = -float(softcap(logits, cap).log_softmax(0)[0]), _given(answer(vocab_size, cap))
        one_sided = math.log1p((vocab_size - 1) * math.exp(-cap))
        assert not math.isclose(found, one_sided, rel_tol=1e-4) or math.isclose(right, one_sided, rel_tol=1e-4), \
            "the wrong tokens' logits need not stop at 0: the cap lets them go down to -softcap"
        assert math.isclose(found, right, rel_tol=1e-4, abs_tol=1e-6), \
            f"with {vocab_size} tokens and a softcap of {cap:g} the surest loss is {right:.6g} nats, not {found:.6g}"


@_checker("03.3")
def _nearest_orthogonal(answer: Callable[[Any], Any]) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    for shape in ((12, 5), (5, 12), (8, 8)):
        gradient = torch.randn(shape, generator=generator)
        found = _given(answer(gradient.clone()))
        assert tuple(found.shape) == shape, f"a gradient of shape {shape} became {tuple(found.shape)}"
        singular = torch.linalg.svdvals(found)
        assert (singular - 1).abs().max() <= 1e-3, (f"its singular values run from {singular.min():.3g} to "
                                                    f"{singular.max():.3g}: each must be 1")
        # Over all matrices with singular values 1, U·Vᵀ has the largest product with the gradient: their sum.
        reached, possible = float((found * gradient).sum()), float(torch.linalg.svdvals(gradient).sum())
        assert reached >= 0.999 * possible, (f"its singular values are 1, but it points elsewhere: only "
                                             f"{reached / possible:.0%} of the descent that is possible")

# Notebook 04: distributed training


@_checker("04.1")
def _global_mean(answer: Callable[[list[float], list[int]], float]) -> None:
    for means, counts in (([2.0, 4.0], [1, 3]), ([3.0, 3.0, 3.0], [5, 1, 9]), ([1.0, 8.0], [7, 0]), ([2.5], [4])):
        found = _given(answer(list(means), list(counts)))
        right = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
        assert abs(found - right) < 1e-9, (f"means {means} over {counts} targets make {right:g}, not {found:g}: add up "
                                           "losses and targets over the ranks, divide once")


@_checker("04.2")
def _accumulation(answer: Callable[[int, int, int, int], int | None]) -> None:
    from tinylib.config import ConfigError
    from tinylib.sizing import plan_batch

    if answer(524_288, 8, 2048, 8) is None:
        raise NotYet
    for sizes in ((524_288, 8, 2048, 8), (524_288, 32, 2048, 16), (4_096, 8, 256, 2), (4_096, 8, 256, 3),
                  (2_048, 16, 256, 1)):
        try:
            right = plan_batch(*sizes)
        except ConfigError:
            right = None
        found = answer(*sizes)
        assert found == right, (f"total {sizes[0]}, {sizes[1]} sequences of {sizes[2]} on {sizes[3]} processes: "
                                f"{right} steps, not {found}: one round is the product of the last three, and what "
                                "does not divide is None")


@_checker("04.3")
def _rows_of(answer: Callable[[int, int, int, int], range]) -> None:
    for world_size, accumulation, size in ((2, 1, 8), (4, 2, 4), (1, 3, 2), (3, 2, 5)):
        parts = [list(_given(answer(rank, world_size, step, size)))
                 for step in range(accumulation) for rank in range(world_size)]
        rows = sorted(row for part in parts for row in part)
        assert all(len(part) == size for part in parts), f"each rank takes {size} rows in each accumulation step"
        assert rows == list(range(world_size * accumulation * size)), (
            f"{world_size} ranks and {accumulation} accumulation steps of {size} rows must take each of the rows "
            f"0 to {world_size * accumulation * size - 1} once, and took {rows}")

# Notebook 05: evaluation


@_checker("05.1")
def _bits_per_byte(answer: Callable[[float, int, int], float]) -> None:
    for loss, tokens, size in ((math.log(256), 1000, 2000), (5.2, 240, 855), (3.1, 10, 47)):
        found, right = _given(answer(loss, tokens, size)), loss * tokens / size / math.log(2)
        assert not math.isclose(found, loss * tokens / size), "that is nats per byte: a bit is ln 2 nats"
        assert not math.isclose(found, loss / math.log(2)), "that is bits per token: how many tokens make a byte?"
        assert math.isclose(found, right, rel_tol=1e-6), \
            f"{tokens} tokens of {loss:.3f} nats for {size} bytes make {right:.4f} bits per byte, not {found:.4f}"


@_checker("05.2")
def _chances(answer: Callable[[list[float], float], list[float]]) -> None:
    import torch

    for logits, temperature in (([1.0, 2.0, 3.0], 1.0), ([1.0, 2.0, 3.0], 0.5), ([0.3, -0.2, 0.0, 5.0], 4.0),
                                ([900.0, 1000.0], 1.0), ([1.0, 7.0, 3.0], 0)):
        found = torch.tensor([float(chance) for chance in _given(answer(list(logits), temperature))])
        right = torch.tensor(logits)
        right = (right / temperature).softmax(0) if temperature else (right == right.max()).float()
        assert found.shape == right.shape and abs(float(found.sum()) - 1) < 1e-4, \
            f"for {logits} at temperature {temperature:g} the chances {found.tolist()} don't add up to 1, one a logit"
        assert torch.allclose(found, right, atol=1e-4), (
            f"for {logits} at temperature {temperature:g} the chances are {[round(c, 4) for c in right.tolist()]}, not "
            f"{[round(c, 4) for c in found.tolist()]}: divide the logits, not the chances; 0 means the likeliest only")


@_checker("05.3")
def _uniform_bits_per_byte(answer: Callable[[Any, str], float]) -> None:
    from tinylib.tokenizer import Tokenizer

    text = "Return the sum of the values. Größe und Maß: größer, am größten. Return the mean of the values."
    for vocab_size in (270, 290):
        tokenizer = Tokenizer.train([text], vocab_size)
        for sample in (text, "Return", "Maß"):
            found, ids = _given(answer(tokenizer, sample)), tokenizer.encode(sample)
            bits = len(ids) * math.log2(tokenizer.vocab_size)
            assert not math.isclose(found, bits / len(sample)) or sample.isascii(), \
                f"that is bits per character: in UTF-8 {sample!r} has more bytes than characters"
            assert math.isclose(found, bits / len(sample.encode()), rel_tol=1e-6), (
                f"{len(ids)} tokens out of {tokenizer.vocab_size} for {len(sample.encode())} bytes make "
                f"{bits / len(sample.encode()):.4f} bits per byte, not {found:.4f}")


# Notebook 06: weight tying


@_checker("06.1")
def _tied_std(answer: Callable[[int, float], float]) -> None:
    import torch

    from tinylib.model import rms_norm

    generator = torch.Generator().manual_seed(0)
    for dim, logit in ((512, 0.5), (128, 0.5), (64, 8.0)):
        std = _given(answer(dim, logit))
        table_VD = torch.randn(2000, dim, generator=generator) * std
        found = float((rms_norm(rms_norm(table_VD)) * table_VD).sum(1).mean())    # the first and the last norm
        assert abs(found / logit - 1) < 0.05, (
            f"at width {dim} a std of {std:.3g} makes a token's own logit {found:.3g}, not {logit:g}: norms divide a "
            "row by its std, and D squares of numbers with std 1 add up to about D")


@_checker("06.2")
def _saved_bytes(answer: Callable[[Any], int]) -> None:
    from dataclasses import replace

    from tinylib.config import PRESETS, GPTConfig
    from tinylib.sizing import optimizer_bytes, weight_bytes

    for config in (PRESETS["goldilocks"], PRESETS["nano"], GPTConfig(5, 128, 10_000)):
        tied, found = replace(config, tied=True), _given(answer(config))
        right = weight_bytes(config) + optimizer_bytes(config) - weight_bytes(tied) - optimizer_bytes(tied)
        assert found == right, (f"V = {config.vocab_size:,} and D = {config.dim} save {right:,} bytes, not {found:,}: "
                                "a number has 4 bytes, and beside each parameter of a table AdamW keeps two more")


@_checker("06.3")
def _better(answer: Callable[[list[float], list[float]], str]) -> None:
    from tinylib.evaluate import t_interval

    cases = [([2.01, 2.12, 2.21], [2.00, 2.10, 2.20]), ([2.00, 2.10, 2.20], [2.02, 2.12, 2.23]),
             ([2.00, 2.10, 2.20], [2.05, 2.08, 2.21]), ([1.90, 2.00, 2.10], [2.00, 1.95, 2.40]), ([1, 2], [3, 4.1])]
    for first, second in cases:
        low, high = t_interval([a - b for a, b in zip(first, second, strict=True)])
        right = "first" if high < 0 else "second" if low > 0 else "neither"
        found = _given(answer(list(first), list(second)))
        assert found == right, (f"{first} against {second}: their mean difference is between {low:.3f} and {high:.3f}, "
                                f"so {right!r}, not {found!r}: pair the seeds, and lower is better")
