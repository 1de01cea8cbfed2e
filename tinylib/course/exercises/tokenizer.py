"""Checkers of notebook 02: tokenizer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from tinylib.course.exercises import checker, given
from tinylib.tokenizer import Tokenizer, words

_TEXT = "the lowest and the newest, the widest of the widest: low, lower, lowest; new, newer, newest; wide, wider"


@checker("02.1")
def changes(answer: Callable[[list[int], tuple[int, int], int], dict[tuple[int, int], int]]) -> None:
    """Changes of the pairs' counts in a word by one merge."""
    cases: list[tuple[list[int], tuple[int, int]]] = [([1, 2, 3, 1, 2], (1, 2)), ([5, 5, 5], (5, 5)), ([4, 3], (1, 2)),
                                                      ([1, 2, 1, 2], (1, 2)), ([7], (1, 2))]
    for ids, pair in cases:
        right = Counter(pairwise(_replaced(ids, pair, 9)))
        right.subtract(Counter(pairwise(ids)))
        found = {key: value for key, value in given(answer(list(ids), pair, 9)).items() if value}
        assert found == {key: value for key, value in right.items() if value}, (
            f"{pair} becomes 9 in {ids}, which changes the counts by {found}? Count the pairs of the word before and "
            "after, from left to right, and subtract")


@checker("02.2")
def counterexample(answer: Callable[[Tokenizer], str]) -> None:
    """A word on which greedy longest match is not byte pair encoding."""
    tokenizer = Tokenizer.train([_TEXT], vocab_size=290)
    word = given(answer(tokenizer))
    assert isinstance(word, str) and words(word) == [word], f"{word!r} is not one word for `words`"
    ids, rest = [], word.encode()
    while rest:
        longest = max((token for token in tokenizer.tokens if rest.startswith(token)), key=len)
        ids.append(tokenizer.tokens.index(longest))
        rest = rest[len(longest):]
    assert ids != tokenizer.encode(word), f"both encode {word!r} as {ids}: look for a word on which they differ"


def _replaced(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    out: list[int] = []
    for token in ids:
        if out and (out[-1], token) == pair:
            out[-1] = new
        else:
            out.append(token)
    return out


@checker("02.3")
def encode_word(answer: Callable[[bytes, list[tuple[int, int]]], list[int]]) -> None:
    """BPE encoding of one pre-token, compared with tiktoken."""
    tokenizer = Tokenizer.train([_TEXT], vocab_size=290)
    for word in ("lowest", "widest", "the", "w", "newness", "thewidest", "été"):    # each is one pre-token
        right, found = tokenizer.encode(word), given(answer(word.encode(), tokenizer.merges()))
        assert list(found) == right, f"tiktoken encodes {word!r} as {right}, your function as {list(found)}"


@checker("02.4")
def cheapest_vocabulary(answer: Callable[[int, int, float, float, list[int]], int]) -> None:
    """The vocabulary with the fewest FLOPs per byte, of those given."""
    sizes = [256 * 2**power for power in range(9)]
    for depth, dim in ((4, 128), (4, 512), (20, 1280)):
        cost = {size: (12 * depth * dim**2 + size * dim) / (0.62 * math.log(size) - 1.8) for size in sizes}
        found = given(answer(depth, dim, 0.62, -1.8, list(sizes)))
        assert found in cost, f"{found} is none of the vocabularies given"
        assert cost[found] == min(cost.values()), (
            f"for {depth} × {dim}, V = {found:,} costs {cost[found] / min(cost.values()):.2f} times the fewest FLOPs "
            "per byte: divide what a token costs by the bytes that it covers; the look-up costs nothing, and ln is the "
            "natural logarithm")


@checker("02.5")
def bytes_per_token(answer: Callable[[list[str], list[str], int], float]) -> None:
    """Compression of texts by a vocabulary that other texts made."""
    training = ["the lowest and the newest, the widest of the widest: low, lower, lowest; new, newer, newest"] * 3
    for test in (["the lowest", "new"], ["été, ici", "the widest of the widest of the widest"]):
        tokenizer = Tokenizer.train(training, 290)
        size, count = sum(len(text.encode()) for text in test), sum(len(tokenizer.encode(text)) for text in test)
        found = given(answer(list(training), list(test), 290))
        assert abs(found - size / count) < 1e-9, (
            f"{test} should have {size / count:.3f} bytes per token, not {found:.3f}: count UTF-8 bytes, sum over all "
            "texts, and divide once")
